"""The init that the KVM probe boots, taken apart again."""

import gzip
import struct

from remuda_agent.probe.banner import BANNER, initramfs


def entries() -> dict[str, tuple[int, bytes]]:
    """Name -> (mode, content) of the archive, read as the kernel does."""
    archive, offset = gzip.decompress(initramfs()), 0
    found: dict[str, tuple[int, bytes]] = {}
    while True:
        assert archive[offset : offset + 6] == b"070701"
        fields = [int(archive[offset + 6 + 8 * n : offset + 14 + 8 * n], 16) for n in range(13)]
        size, name_size = fields[6], fields[11]
        name = archive[offset + 110 : offset + 110 + name_size - 1].decode()
        start = (offset + 110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], archive[start : start + size])
        offset = (start + size + 3) & ~3


def test_the_archive_has_an_executable_init_and_a_console() -> None:
    found = entries()
    assert list(found) == ["dev", "dev/console", "init"]
    assert found["init"][0] == 0o100755
    assert found["dev/console"][0] == 0o020600


def test_init_is_a_whole_elf_file_that_points_at_its_banner() -> None:
    init = entries()["init"][1]
    assert init[:5] == b"\x7fELF\x02"
    entry = struct.unpack_from("<Q", init, 24)[0]
    _, _, offset, load, _, size, _, _ = struct.unpack_from("<IIQQQQQQ", init, 64)
    assert (offset, size) == (0, len(init))
    code = init[entry - load :]
    message = struct.unpack_from("<Q", code, 12)[0]
    length = struct.unpack_from("<I", code, 21)[0]
    assert init[message - load : message - load + length] == BANNER


def test_the_archive_is_the_same_every_time() -> None:
    assert initramfs() == initramfs()
