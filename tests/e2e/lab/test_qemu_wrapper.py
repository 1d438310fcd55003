"""The wrapper before QEMU changes a TCG guest's memory size, and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from remuda_lab.host_files import QEMU_WRAPPER
from remuda_lab.lab import Lab
from remuda_lab.testing import bare_lab

__all__ = ["bare_lab"]

BACKEND = '{"qom-type":"memory-backend-ram","id":"pc.ram","size":100663296}'
OTHER = '{"qom-type":"secret","id":"masterKey0","file":"a b.aes"}'


def passed_on(place: Path, *arguments: str) -> list[str]:
    """What the real program is started with."""
    real = place / "real"
    real.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    real.chmod(0o755)
    text = QEMU_WRAPPER.read_text()
    line = next(line for line in text.splitlines() if line.startswith("real="))
    wrapper = place / "wrapper"
    wrapper.write_text(text.replace(line, f"real={real}"))
    return subprocess.run(
        ["/bin/sh", str(wrapper), *arguments], capture_output=True, text=True, check=True, timeout=10
    ).stdout.splitlines()


def test_a_tcg_guest_gets_64_kib_more_in_both_places(tmp_path: Path) -> None:
    words = ("-name", "a b", "-accel", "tcg,tb-size=32", "-m", "96", "-object", BACKEND, "-object", OTHER)
    assert passed_on(tmp_path, *words) == [
        *("-name", "a b", "-accel", "tcg,tb-size=32", "-m", f"{96 * 1024 + 64}k"),
        *("-object", BACKEND.replace("100663296", str(100663296 + 65536)), "-object", OTHER),
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("-accel", "kvm", "-m", "96", "-object", BACKEND),
        ("--version",),
        ("-accel", "tcg", "-m", "size=98304k,slots=16,maxmem=1048576k"),
    ],
)
def test_everything_else_is_passed_on_as_it_is(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert passed_on(tmp_path, *words) == list(words)


@pytest.mark.root
def test_hosts_have_the_wrapper_and_qemu_still_finds_its_firmware(bare_lab: Lab) -> None:
    host = bare_lab.host("host1")
    assert "QEMU emulator" in host.run(["qemu-system-x86_64", "--version"])
    program = host.run(["sh", "-c", "command -v qemu-system-x86_64"]).strip()
    assert host.run(["head", "-c", "9", program]) == "#!/bin/sh"
    machines = host.virsh("domcapabilities", "--virttype", "qemu")
    assert "<machine>" in machines
    help_text = host.run(["qemu-system-x86_64", "-L", "help"])
    assert any(Path(line, "bios-256k.bin").exists() for line in _in_the_machine(help_text))


def _in_the_machine(listing: str) -> list[str]:
    """The wrapper's prefix has links to /usr, which is the machine's own."""
    return [line.strip().replace("/run/remuda-lab/", "/usr/") for line in listing.splitlines()]
