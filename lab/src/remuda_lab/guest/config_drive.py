"""Config drives for guests that the lab starts itself, without the services (ConfigDrive v2 on vfat, label
config-2).
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path

from remuda_lab.commands import find, run

SIZE_MIB = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """One interface of a guest and the address it shall take."""

    mac: str
    address: IPv4Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigDrive:
    """What a guest finds on its config drive."""

    uuid: str
    hostname: str
    nics: tuple[Nic, ...] = ()
    user_data: str | None = None


def documents(drive: ConfigDrive) -> dict[str, str]:
    """The files below ``openstack/latest/``."""
    links = [
        {"id": f"link{n}", "type": "phy", "ethernet_mac_address": nic.mac} for n, nic in enumerate(drive.nics)
    ]
    networks = [
        {
            "id": f"network{n}",
            "type": "ipv4",
            "link": f"link{n}",
            "ip_address": str(nic.address.ip),
            "netmask": str(nic.address.netmask),
            "routes": [],
        }
        for n, nic in enumerate(drive.nics)
    ]
    files = {
        "meta_data.json": json.dumps(
            {"uuid": drive.uuid, "hostname": drive.hostname, "name": drive.hostname}
        ),
        "network_data.json": json.dumps({"links": links, "networks": networks, "services": []}),
    }
    if drive.user_data is not None:
        files["user_data"] = drive.user_data
    return files


def write_config_drive(path: Path, drive: ConfigDrive) -> None:
    """Make the image at ``path``, replacing what is there. Needs mtools and dosfstools, not root."""
    path.unlink(missing_ok=True)
    with path.open("wb") as image:
        image.truncate(SIZE_MIB * 1024 * 1024)
    run([str(find("mkfs.fat")), "-n", "config-2", str(path)])
    with tempfile.TemporaryDirectory(prefix="remuda-config-drive-") as scratch:
        latest = Path(scratch) / "openstack" / "latest"
        latest.mkdir(parents=True)
        for name, text in documents(drive).items():
            (latest / name).write_text(text)
        run(["mcopy", "-s", "-i", str(path), str(Path(scratch) / "openstack"), "::/"])
