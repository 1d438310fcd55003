"""The installed command as a process of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REMUDA = Path(sys.executable).with_name("remuda")


def test_help_loads_neither_grpc_nor_rich_nor_protobuf() -> None:
    program = (
        "import sys; from remuda_cli.main import run; code = run(['instance', 'live-migrate', '--help'])\n"
        "heavy = {'grpc', 'rich', 'google.protobuf', 'yaml'} & set(sys.modules)\n"
        "print(heavy, file=sys.stderr); sys.exit(code or len(heavy))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert "--max-downtime" in done.stdout


def test_the_shell_gets_names_from_the_server(gateway: Any) -> None:
    environ = {
        **os.environ,
        "_REMUDA_COMPLETE": "complete_bash",
        "COMP_WORDS": "remuda instance show w",
        "COMP_CWORD": "3",
    }
    done = subprocess.run([REMUDA], env=environ, capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout.split() == ["web-1", "worker"], done.stderr
    assert len(gateway.state.asked("ListInstances")) == 1


def test_a_reader_that_goes_away_is_no_error(gateway: Any) -> None:
    assert gateway.state.flavors
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [REMUDA, "flavor", "list"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=90, check=False
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 0


def test_a_terminal_is_redrawn_in_place_and_keeps_the_last_picture(gateway: Any) -> None:
    """A pseudo-terminal as stderr; stdout stays a pipe and stays clean."""
    from google.longrunning import operations_pb2
    from remuda.compute.v1 import instance_pb2, operation_pb2

    metadata = operation_pb2.OperationMetadata
    ended = operations_pb2.Operation(name="operations/0e000000-0000-4000-8000-00000000000a", done=True)
    ended.metadata.Pack(metadata(state=metadata.STATE_DONE, action="StartInstance", target="x/web-1"))
    ended.response.Pack(instance_pb2.Instance(display_name="web-1"))
    gateway.state.watches = [[ended]]
    leader, follower = os.openpty()
    done = subprocess.run(
        [REMUDA, "instance", "start", "web-1", "-o", "name"],
        stdin=follower,
        stdout=subprocess.PIPE,
        stderr=follower,
        timeout=90,
        check=False,
        env={**os.environ, "TERM": "xterm", "NO_COLOR": "1"},
    )
    os.close(follower)
    shown = os.read(leader, 65536).decode()
    os.close(leader)
    assert done.returncode == 0, shown
    assert b"\x1b" not in done.stdout
    assert "starting web-1" in shown
    assert "StartInstance web-1: done" in shown
