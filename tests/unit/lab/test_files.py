"""Files that a host and a guest are made of."""

from __future__ import annotations

import json
import struct
from ipaddress import IPv4Interface
from pathlib import Path

import pytest
from remuda_lab.errors import LabError
from remuda_lab.guest import ConfigDrive, Nic
from remuda_lab.guest.config_drive import documents
from remuda_lab.guest.disk import master_boot_record, partition_entry
from remuda_lab.host_files import libvirtd_conf, qemu_conf, render_conf, setup_commands
from remuda_lab.layout import LabPaths, plan_hosts


def test_a_partition_entry_says_where_and_how_long() -> None:
    entry = partition_entry(bootable=True, kind=6, start_mib=1, size_mib=24)
    flag, _, kind, _, start, size = struct.unpack("<B3sB3sII", entry)
    assert (flag, kind, start, size) == (0x80, 6, 2048, 24 * 2048)


def test_the_boot_record_is_one_signed_sector_with_adjacent_partitions() -> None:
    record = master_boot_record(b"\xfa" * 440)
    assert len(record) == 512
    assert record[510:] == b"\x55\xaa"
    first = struct.unpack_from("<II", record, 446 + 8)
    second = struct.unpack_from("<II", record, 462 + 8)
    assert second[0] == first[0] + first[1]
    assert record[478:510] == bytes(32)


def test_boot_code_that_would_cover_the_table_is_refused() -> None:
    with pytest.raises(LabError, match="holds 440"):
        master_boot_record(bytes(441))


def test_a_config_drive_names_the_interface_by_its_mac() -> None:
    nic = Nic(mac="52:54:00:00:00:01", address=IPv4Interface("10.78.0.5/20"))
    files = documents(ConfigDrive(uuid="u", hostname="h", nics=(nic,), user_data="#!/bin/sh\n"))
    network = json.loads(files["network_data.json"])
    assert network["links"][0]["ethernet_mac_address"] == "52:54:00:00:00:01"
    assert network["networks"][0]["ip_address"] == "10.78.0.5"
    assert network["networks"][0]["netmask"] == "255.255.240.0"
    assert network["networks"][0]["link"] == network["links"][0]["id"]
    assert json.loads(files["meta_data.json"])["uuid"] == "u"
    assert files["user_data"] == "#!/bin/sh\n"


def test_a_config_drive_without_user_data_has_no_such_file() -> None:
    assert "user_data" not in documents(ConfigDrive(uuid="u", hostname="h"))


def test_libvirt_listens_on_tls_and_on_tcp_only_where_it_was_asked_for() -> None:
    plan = plan_hosts("a", 1)[0]
    assert libvirtd_conf(plan, tcp=False)["listen_tls"] == 1
    assert libvirtd_conf(plan, tcp=False)["listen_tcp"] == 0
    assert libvirtd_conf(plan, tcp=True)["listen_tcp"] == 1


def test_hosts_differ_in_uuid_and_migration_address() -> None:
    one, two = plan_hosts("a", 2)
    assert libvirtd_conf(one, tcp=False)["host_uuid"] != libvirtd_conf(two, tcp=False)["host_uuid"]
    assert qemu_conf(one)["migration_address"] == "10.77.0.11"
    assert qemu_conf(two)["migration_address"] == "10.77.0.12"


def test_settings_are_written_in_libvirts_syntax() -> None:
    text = render_conf({"a": 1, "b": "text", "c": [], "d": ["x", "y"]})
    assert text == 'a = 1\nb = "text"\nc = []\nd = ["x", "y"]\n'


def test_the_shared_pool_is_bound_before_the_var_that_could_hide_it() -> None:
    paths = LabPaths(root=Path("/var/tmp/lab"))
    one, _, three = plan_hosts("a", 3)
    commands = setup_commands(paths.host("host1"), one, paths.shared_pool)
    targets = [command[-1] for command in commands if command[0] == "mount"]
    shared = next(n for n, target in enumerate(targets) if target.endswith("remuda-pools/shared"))
    assert shared < targets.index("/var")
    alone = setup_commands(paths.host("host3"), three, paths.shared_pool)
    assert not any(str(paths.shared_pool) in command for command in alone)
