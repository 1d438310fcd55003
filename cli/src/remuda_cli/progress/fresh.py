"""Which progress is still that of the step going on. Pure."""

from remuda.compute.v1 import operation_pb2

from remuda_cli.progress.lines import Metadata


class FreshProgress:
    """The api repeats the newest progress of an operation until another comes, and few steps have any of
    their own: what an earlier step left behind would look like the state of the present one.
    """

    def __init__(self) -> None:
        self._progress = operation_pb2.Progress()
        self._step: tuple[int, str] = (0, "")

    def of(self, metadata: Metadata) -> Metadata:
        """``metadata``, or a copy without its progress when that is another step's, or is complete."""
        if not metadata.HasField("progress"):
            return metadata
        step = (int(metadata.state), metadata.phase)
        if metadata.progress != self._progress:
            self._progress.CopyFrom(metadata.progress)
            self._step = step
        transfer = metadata.progress.transfer
        complete = 0 < transfer.total_bytes <= transfer.done_bytes
        if step == self._step and not complete:
            return metadata
        without = Metadata()
        without.CopyFrom(metadata)
        without.ClearField("progress")
        return without
