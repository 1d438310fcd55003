"""kvm or qemu: what is decided when nothing can be tried."""

from pathlib import Path

import pytest
from remuda_agent.probe import domain_type
from remuda_agent.probe.domain_type import choose_domain_type, host_kernels


@pytest.mark.parametrize("setting", ["kvm", "qemu"])
async def test_the_operators_word_is_taken(setting: str) -> None:
    chosen = await choose_domain_type(setting=setting)
    assert (chosen.name, chosen.proven) == (setting, True)


async def test_without_the_device_there_is_no_kvm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(domain_type, "DEVICE", tmp_path / "kvm")
    chosen = await choose_domain_type()
    assert (chosen.name, chosen.proven) == ("qemu", True)
    assert "not there" in chosen.reason


async def test_without_a_kernel_to_try_tcg_is_chosen_and_said_to_be_unproven(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(domain_type, "DEVICE", tmp_path / "kvm")
    monkeypatch.setattr("shutil.which", lambda _: "/bin/true")
    chosen = await choose_domain_type(kernels=[tmp_path / "vmlinuz"])
    assert (chosen.name, chosen.proven) == ("qemu", False)
    assert "domain_type" in chosen.reason


def test_the_running_kernel_is_tried_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.release", lambda: "5.10.0")
    for name in ("vmlinuz-5.10.0", "vmlinuz-6.1.0", "initrd.img-6.1.0"):
        (tmp_path / name).touch()
    assert [path.name for path in host_kernels(tmp_path)] == ["vmlinuz-5.10.0", "vmlinuz-6.1.0"]
