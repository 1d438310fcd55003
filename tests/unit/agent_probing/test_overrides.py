"""Facts that a lab's operator overrides."""

from pathlib import Path

import pytest
from remuda_agent.hypervisor import CpuComparison, CpuVerdict
from remuda_agent.hypervisor.fake import DEFAULT_CAPABILITIES
from remuda_agent.overrides import FactsOverride, read_override
from remuda_core.config import ConfigError

FITS = CpuVerdict(comparison=CpuComparison.SUPERSET)


def test_without_a_file_nothing_is_overridden_in_a_lab_or_out_of_it() -> None:
    for lab in (True, False):
        override = read_override(None, lab=lab)
        assert override.names == []
        assert override.warnings == []
        assert override.capabilities(DEFAULT_CAPABILITIES) == DEFAULT_CAPABILITIES
        assert override.verdict(FITS) == FITS


def test_outside_a_lab_a_file_is_refused_whatever_it_says(tmp_path: Path) -> None:
    file = tmp_path / "facts.toml"
    file.write_text("")
    with pytest.raises(ConfigError, match="for labs"):
        read_override(file, lab=False)


def test_a_file_says_what_the_host_tells_instead(tmp_path: Path) -> None:
    file = tmp_path / "facts.toml"
    file.write_text('cpu = "incompatible"\nqemu_version = 6002000\nmachine_types = ["pc-q35-6.2"]\n')
    override = read_override(file, lab=True)
    assert override.names == ["cpu", "qemu_version", "machine_types"]
    told = override.capabilities(DEFAULT_CAPABILITIES)
    assert told.qemu_version == 6_002_000
    assert told.libvirt_version == DEFAULT_CAPABILITIES.libvirt_version
    assert told.machine_types == ("pc-q35-6.2",)
    assert override.verdict(FITS).comparison is CpuComparison.INCOMPATIBLE


def test_missing_features_alone_make_every_cpu_incompatible() -> None:
    verdict = FactsOverride(cpu_missing_features=("avx2", "bmi1")).verdict(FITS)
    assert verdict.comparison is CpuComparison.INCOMPATIBLE
    assert "avx2, bmi1" in verdict.detail


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('cpu = "fine"', "cpu"),
        ("libvirt_versions = 8000000", "libvirt_versions"),
        ("libvirt_version = -1", "libvirt_version"),
        ("cpu =", "facts.toml"),
    ],
)
def test_a_file_that_says_something_else_is_refused_with_its_mistake(
    tmp_path: Path, text: str, word: str
) -> None:
    file = tmp_path / "facts.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=word):
        read_override(file, lab=True)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        read_override(tmp_path / "missing.toml", lab=True)
