"""What a snapshot reads, finds and sends, in words. Pure."""

from remuda.image.v1 import image_pb2, source_pb2

from remuda_cli.output.units import human_bytes

_CONSISTENCY = {
    source_pb2.ImageSource.CONSISTENCY_CRASH: "as after a loss of power",
    source_pb2.ImageSource.CONSISTENCY_FILESYSTEM: "with its file systems frozen",
    source_pb2.ImageSource.CONSISTENCY_OFF: "of a guest that does not run",
}


def counts_line(counts: source_pb2.TransferCounts) -> str:
    """`new 312.0 MiB of 40.0 GiB; read 1.2 GiB of 1.5 GiB touched, 900.0 MiB known, 312.0 MiB sent`.

    What is new counts as it is stored, the rest as the guest sees it.
    """
    parts = [f"read {human_bytes(counts.read_bytes)} of {human_bytes(counts.touched_bytes)} touched"]
    if counts.deduplicated_bytes:
        parts.append(f"{human_bytes(counts.deduplicated_bytes)} known")
    parts.append(f"{human_bytes(counts.sent_bytes)} sent")
    new = f"new {human_bytes(counts.stored_bytes)} of {human_bytes(counts.disk_bytes)}"
    return f"{new}; {', '.join(parts)}" + ("; since the last snapshot" if counts.incremental else "")


def snapshot_line(image: image_pb2.Image) -> str:
    """`backup-1: as after a loss of power; new 64.0 MiB of 2.0 GiB; ...`."""
    taken = _CONSISTENCY.get(image.source.consistency, "")
    counts = counts_line(image.source.counts) if image.source.HasField("counts") else ""
    return f"{image.display_name}: " + ("; ".join(part for part in (taken, counts) if part) or "made")
