"""Facts of this host that an operator has overridden for a lab: `--facts-override FILE`.

All hosts of a lab on one machine have the same processor, libvirt and QEMU, so nothing that compares them
could ever fail there. The file makes a host tell something else. TOML, every key optional:

    cpu = "incompatible"              # every guest's CPU is refused
    cpu_missing_features = ["avx2"]   # the same, and these are named
    libvirt_version = 8000000         # 8.0.0
    qemu_version = 6002000            # 6.2.0
    machine_types = ["pc-q35-6.2"]    # canonical, newest last

Refused unless the agent's configuration says `lab = true`; whatever is overridden shows among the host's
warnings and in every answer that it touched.
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from remuda_core.config import ConfigError, Section

from remuda_agent.hypervisor import CpuComparison, CpuVerdict, HypervisorCapabilities


class FactsOverride(Section):
    """What the file says. The empty one overrides nothing."""

    cpu: Literal["", "incompatible"] = ""
    cpu_missing_features: tuple[str, ...] = ()
    libvirt_version: int = Field(default=0, ge=0)
    qemu_version: int = Field(default=0, ge=0)
    machine_types: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Of the facts that are overridden: cpu, libvirt_version, qemu_version, machine_types."""
        chosen = {
            "cpu": self.cpu or self.cpu_missing_features,
            "libvirt_version": self.libvirt_version,
            "qemu_version": self.qemu_version,
            "machine_types": self.machine_types,
        }
        return [name for name, value in chosen.items() if value]

    @property
    def warnings(self) -> list[str]:
        """For the host's inventory."""
        return [f"{name} is overridden for a lab by --facts-override" for name in self.names]

    def capabilities(self, real: HypervisorCapabilities) -> HypervisorCapabilities:
        """What the host tells instead."""
        machines = self.machine_types or real.machine_types
        return replace(
            real,
            libvirt_version=self.libvirt_version or real.libvirt_version,
            qemu_version=self.qemu_version or real.qemu_version,
            machine_types=machines,
        )

    def verdict(self, real: CpuVerdict) -> CpuVerdict:
        """The comparison that the host tells instead."""
        if not (self.cpu or self.cpu_missing_features):
            return real
        missing = ", ".join(self.cpu_missing_features) or "not said"
        return CpuVerdict(
            comparison=CpuComparison.INCOMPATIBLE,
            detail=f"overridden for a lab, missing features: {missing}",
        )


def read_override(file: Path | None, *, lab: bool) -> FactsOverride:
    """Raises ConfigError for a file outside a lab, and for one that is not as above."""
    if file is None:
        return FactsOverride()
    if not lab:
        raise ConfigError(
            f"--facts-override {file} makes a host lie about itself: it is for labs, whose agents have"
            " `lab = true` in their configuration; remove it"
        )
    try:
        return FactsOverride(**tomllib.loads(file.read_text()))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--facts-override: {file}: {error}") from error
    except ValidationError as error:
        troubles = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg'][:1].lower()}{one['msg'][1:]}"
            for one in error.errors(include_url=False)
        )
        raise ConfigError(f"--facts-override: {file}: {troubles}") from error
