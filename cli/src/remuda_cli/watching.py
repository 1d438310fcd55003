"""-w: lists that go on."""

import time
from collections.abc import Callable, Sequence

import grpc
from google.protobuf.message import Message
from remuda.compute.v1 import instance_pb2

from remuda_cli.exit_codes import ExitCode
from remuda_cli.failure import Failure
from remuda_cli.output.columns import columns_of
from remuda_cli.output.formats import Format
from remuda_cli.output.render import ndjson
from remuda_cli.output.table import Column, aligned, cells, chosen
from remuda_cli.progress.display import to_stdout
from remuda_cli.rpc_failure import code_of, from_rpc_error
from remuda_cli.session import Session

SILENT_SECONDS = 60.0
POLL_SECONDS = 2.0

Change = instance_pb2.WatchInstancesResponse


class Rows:
    """Prints rows below each other, as wide as the widest so far."""

    def __init__(self, columns: Sequence[Column], session: Session) -> None:
        self._columns = columns
        self._session = session
        self._widths = [len(column.header) for column in columns]

    def start(self, messages: Sequence[Message]) -> None:
        rows = [cells(self._columns, message, self._session.label) for message in messages]
        self._print([[column.header for column in self._columns], *rows])

    def add(self, message: Message, *, ending: str = "") -> None:
        row = cells(self._columns, message, self._session.label)
        self._print([row], ending=ending)

    def _print(self, rows: list[list[str]], *, ending: str = "") -> None:
        self._widths = [max(w, *(len(row[i]) for row in rows)) for i, w in enumerate(self._widths)]
        for line in aligned(rows, self._widths):
            to_stdout(line + ending)


def watch_instances(session: Session, *, parent: str, only: str = "") -> None:
    """Until Ctrl-C. After a broken connection the stream lists everything again; what did not change in
    the meantime is not printed twice. `only`: UUID.
    """
    columns = chosen(columns_of(instance_pb2.Instance), wide=session.format is Format.WIDE)
    rows = Rows(columns, session)
    known: dict[str, instance_pb2.Instance] = {}
    synced = False
    heard = time.monotonic()
    while True:
        listed: dict[str, instance_pb2.Instance] = {}
        listing = True
        call = session.gateway.instances.WatchInstances(instance_pb2.WatchInstancesRequest(parent=parent))
        try:
            for change in call:
                heard = time.monotonic()
                if only and change.kind != Change.KIND_SYNCED and change.instance.uid != only:
                    continue
                if session.format is Format.JSON:
                    to_stdout(ndjson(change))
                elif change.kind == Change.KIND_SYNCED:
                    _synced(rows, known if synced else None, listed)
                    known, listing, synced = listed, False, True
                elif change.kind == Change.KIND_DELETE:
                    gone = (known if not listing else listed).pop(change.instance.name, change.instance)
                    if not listing:
                        rows.add(gone, ending="  (deleted)")
                elif listing:
                    listed[change.instance.name] = change.instance
                else:
                    known[change.instance.name] = change.instance
                    rows.add(change.instance)
        except KeyboardInterrupt:
            call.cancel()
            raise Failure(ExitCode.INTERRUPTED, "interrupted") from None
        except grpc.RpcError as error:
            code = code_of(error)
            if code is not grpc.StatusCode.UNAVAILABLE or time.monotonic() - heard > SILENT_SECONDS:
                raise from_rpc_error(error) from None
        session.note("the connection broke, connecting again")
        time.sleep(1.0)


def _synced(
    rows: Rows,
    before: dict[str, instance_pb2.Instance] | None,
    now: dict[str, instance_pb2.Instance],
) -> None:
    if before is None:
        rows.start(list(now.values()))
        return
    for name, instance in now.items():
        if before.get(name) != instance:
            rows.add(instance)
    for name in before.keys() - now.keys():
        rows.add(before[name], ending="  (deleted)")


def watch_list(session: Session, kind: type[Message], fetch: Callable[[], Sequence[Message]]) -> None:
    """For nouns without a stream: asks every two seconds, prints what changed. Until Ctrl-C."""
    rows = Rows(chosen(columns_of(kind), wide=session.format is Format.WIDE), session)
    known: dict[str, Message] | None = None
    try:
        while True:
            now = {_key(message): message for message in fetch()}
            if session.format is Format.JSON:
                for name, message in now.items():
                    if known is None or known.get(name) != message:
                        to_stdout(ndjson(message))
            elif known is None:
                rows.start(list(now.values()))
            else:
                for name, message in now.items():
                    if known.get(name) != message:
                        rows.add(message)
                for name in known.keys() - now.keys():
                    rows.add(known[name], ending="  (deleted)")
            known = now
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        raise Failure(ExitCode.INTERRUPTED, "interrupted") from None


def _key(message: Message) -> str:
    return str(getattr(message, "name", ""))
