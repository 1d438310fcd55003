"""The guest's own scripts, run by the busybox that the guest runs them with."""

from __future__ import annotations

import json
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest
from remuda_lab.commands import find, run
from remuda_lab.guest import ConfigDrive, Nic, write_config_drive
from remuda_lab.guest.initrd import FILES


def awk(document: Any, tmp_path: Path, *arguments: str) -> list[str]:
    path = tmp_path / "document.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return run(
        [str(find("busybox")), "awk", "-f", str(FILES / "json.awk"), *arguments, str(path)]
    ).splitlines()


@pytest.mark.parametrize("indent", [None, 1])
def test_a_top_level_name_is_found_however_the_document_is_laid_out(
    indent: int | None, tmp_path: Path
) -> None:
    document = json.dumps(
        {"meta": {"hostname": "no"}, "list": [{"hostname": "no"}], "hostname": "yes", "n": None, "e": {}},
        indent=indent,
    )
    assert awk(document, tmp_path, "-v", "want=hostname") == ["yes"]


def test_escaped_quotes_and_slashes_do_not_end_a_string(tmp_path: Path) -> None:
    assert awk('{"a": "x\\"y", "b": "c\\/d", "uuid": "u"}', tmp_path, "-v", "want=b") == ["c/d"]
    assert awk('{"a": "x\\"y", "b": "c\\/d", "uuid": "u"}', tmp_path, "-v", "want=uuid") == ["u"]


@pytest.mark.parametrize("broken", ["", "{", '{"a"', '{"a": [1, ', "]", '"'])
def test_a_broken_document_ends_without_a_value(broken: str, tmp_path: Path) -> None:
    assert [line for line in awk(broken, tmp_path, "-v", "want=hostname") if line] == []


def test_each_network_goes_to_the_mac_of_its_link(tmp_path: Path) -> None:
    document = {
        "links": [
            {"id": "a", "ethernet_mac_address": "52:54:00:00:00:0A"},
            {"id": "b", "ethernet_mac_address": "52:54:00:00:00:0b"},
        ],
        "networks": [
            {"id": "n0", "type": "ipv4", "link": "b", "ip_address": "10.1.0.2", "netmask": "255.255.0.0",
             "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.1.0.1"}]},
            {"id": "n1", "type": "ipv6", "link": "a", "ip_address": "fe80::1"},
            {"id": "n2", "type": "ipv4", "link": "a", "ip_address": "10.2.0.2/20"},
            {"type": "ipv4", "ip_address": "10.3.0.2", "gateway": "10.3.0.1"},
        ],
    }  # fmt: skip
    assert awk(document, tmp_path, "-f", str(FILES / "networks.awk")) == [
        "52:54:00:00:00:0b 10.1.0.2 255.255.0.0 10.1.0.1",
        "52:54:00:00:00:0a 10.2.0.2 20 -",
        "- 10.3.0.2 255.255.255.0 10.3.0.1",
    ]


def test_a_config_drive_is_a_vfat_image_with_the_right_label_and_files(tmp_path: Path) -> None:
    image = tmp_path / "config.img"
    nic = Nic(mac="52:54:00:00:00:01", address=IPv4Interface("10.78.0.5/24"))
    write_config_drive(image, ConfigDrive(uuid="u-1", hostname="h", nics=(nic,), user_data="#!/bin/sh\n"))
    assert "config-2" in run([str(find("mlabel")), "-s", "-i", str(image), "::"])
    meta = run(["mtype", "-i", str(image), "::/openstack/latest/meta_data.json"])
    assert json.loads(meta)["uuid"] == "u-1"
    assert run(["mtype", "-i", str(image), "::/openstack/latest/user_data"]).startswith("#!/bin/sh")
