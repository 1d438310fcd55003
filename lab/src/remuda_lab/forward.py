"""Lets the machine reach the fabric: listens on 127.0.0.1 of the machine, connects inside the fabric.

    python -m remuda_lab.forward --lab DIR --fabric PID --port 7443 --target 10.77.0.1:7443

The process lives in the machine's network and in the fabric's *pid* namespace (so it ends with the fabric).
It makes its listening socket first and moves into the fabric's network afterwards: a socket stays where it
was made.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import subprocess
import sys

from remuda_lab.errors import LabError
from remuda_lab.fabric import Fabric
from remuda_lab.layout import LabPaths
from remuda_lab.namespaces import enter_command, enter_network
from remuda_lab.python import module_command

_BLOCK = 64 * 1024


def start_forward(paths: LabPaths, fabric: Fabric, *, target: tuple[str, int], port: int) -> int:
    """Start a forwarder and return its port on 127.0.0.1. Raises LabError when the port is taken."""
    argv = module_command(
        "forward",
        *("--lab", str(paths.root)),
        *("--fabric", str(fabric.init.pid)),
        *("--port", str(port)),
        *("--target", f"{target[0]}:{target[1]}"),
    )
    paths.logs.mkdir(parents=True, exist_ok=True)
    with (paths.logs / "forward.log").open("ab") as log:
        process = subprocess.Popen(
            enter_command(fabric.init.pid, ("pid",), argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    assert process.stdout is not None
    with process.stdout as stdout:
        line = stdout.readline().decode().strip()
    if not line.isdigit():
        raise LabError(
            line or f"the forwarder to {target[0]}:{target[1]} ended; see {paths.logs / 'forward.log'}"
        )
    return int(line)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_BLOCK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _serve(listener: socket.socket, target: tuple[str, int]) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.wait_for(asyncio.open_connection(*target), 10)
        except OSError as error:
            print(f"cannot reach {target[0]}:{target[1]} in the fabric: {error}", file=sys.stderr, flush=True)
            writer.close()
            return
        try:
            await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
        except OSError:
            # One side reset the connection; both are closed below, which tells the other.
            pass
        finally:
            there_writer.close()
            writer.close()

    server = await asyncio.start_server(connected, sock=listener)
    await server.serve_forever()


def main() -> None:
    """Print the port (or a sentence that says why not) on standard output, then serve."""
    parser = argparse.ArgumentParser(prog="remuda_lab.forward")
    parser.add_argument("--lab", required=True)
    parser.add_argument("--fabric", required=True, type=int)
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--target", required=True)
    arguments = parser.parse_args()
    address, _, port = arguments.target.rpartition(":")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", arguments.port))
    except OSError as error:
        print(f"127.0.0.1:{arguments.port}: {error.strerror}; choose another port", flush=True)
        sys.exit(1)
    listener.listen(64)
    enter_network(arguments.fabric)
    print(listener.getsockname()[1], flush=True)
    sys.stdout.close()
    asyncio.run(_serve(listener, (address, int(port))))


if __name__ == "__main__":
    main()
