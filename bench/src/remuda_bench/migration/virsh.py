"""The raw tool: ``virsh migrate`` with what Remuda's agent asks of libvirt, word for word.

tests/unit/bench compares these words with the agent's own flags and parameters.
"""

from __future__ import annotations

import shlex
import subprocess
import threading
import time
from dataclasses import dataclass

from remuda_core.migration.ladder import Pace
from remuda_lab.errors import CommandFailed
from remuda_lab.host import Host

from remuda_bench.migration.plan import Kind

MIGRATE_SECONDS = 120.0
DISKS = ("vda", "vdb")
"""The guest's own, and its config drive."""
MAX_DOWNTIME_MS = Pace().first_downtime(300)
"""300: what a request without a limit allows. The job begins with less, and so does the agent's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """Seconds of the wall clock."""

    spawned: float
    begun: float
    """virsh is connected and has found the domain: its call to libvirt comes now."""
    returned: float


def migrate_words(kind: Kind, *, domain: str, target: str, address: str, xml: str) -> list[str]:
    """``xml``: path of the definition for the target, on the source."""
    words = ["migrate", "--live", "--p2p", "--persistent", "--abort-on-error", "--tls"]
    if kind is Kind.BLOCK:
        # The overlays are there already, at equal size.
        words += ["--copy-storage-inc", "--migrate-disks", ",".join(DISKS)]
    else:
        # The same directory on both hosts, which libvirt cannot know.
        words += ["--unsafe"]
    words += ["--tls-destination", target, "--migrateuri", f"tcp://{address}"]
    words += ["--xml", xml, "--persistent-xml", xml]
    return [*words, domain, f"qemu+tls://{target}/system"]


def migrate(source: Host, words: list[str], *, domain: str) -> Called:
    """Moves a guest and tells when. Raises CommandFailed.

    Its start-up is left out, in its favour: it says the domain's uuid first, and a word when it has moved it,
    both a line at a time, whose arrival is what is timed.
    """
    script = f"domuuid {domain}; {shlex.join(words)}; echo returned"
    argv = source.command(["stdbuf", "-oL", "virsh", "-q", "-c", "qemu:///system", script])
    spawned = time.time()
    lines: list[tuple[float, str]] = []
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        watchdog = threading.Timer(MIGRATE_SECONDS, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            lines += [(time.time(), line.strip()) for line in process.stdout if line.strip()]
        finally:
            watchdog.cancel()
    said = [line for _, line in lines]
    if process.returncode != 0 or len(lines) < 2 or said[-1] != "returned":
        raise CommandFailed(argv, f"ended with status {process.returncode}", "\n".join(said))
    return Called(spawned=spawned, begun=lines[0][0], returned=lines[-1][0])
