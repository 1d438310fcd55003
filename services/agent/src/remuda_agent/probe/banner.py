"""The smallest user space there is: an initramfs whose init says one line. Pure; x86-64.

    init:  write(1, BANNER, len); for (;;) pause();

Made by hand because a host need not have a compiler, a busybox or an initrd that we may read.
"""

from __future__ import annotations

import gzip
import struct

BANNER = b"remuda-probe: user space\n"

_LOAD_ADDRESS = 0x400000
_HEADERS = 64 + 56
_MODE_FILE = 0o100755
_MODE_DIRECTORY = 0o040755
_MODE_CHARACTER_DEVICE = 0o020600


def initramfs() -> bytes:
    """gzip of a cpio archive (newc format) with /init and /dev/console, which the kernel opens for it."""
    entries = [
        _entry(1, "dev", _MODE_DIRECTORY),
        _entry(2, "dev/console", _MODE_CHARACTER_DEVICE, device=(5, 1)),
        _entry(3, "init", _MODE_FILE, content=_init()),
        _entry(0, "TRAILER!!!", 0),
    ]
    return gzip.compress(b"".join(entries), mtime=0)


def _init() -> bytes:
    """A static ELF file: two headers, twenty-odd bytes of code, the banner."""
    code_length = 40
    message = _LOAD_ADDRESS + _HEADERS + code_length
    code = b"".join(
        (
            b"\xb8\x01\x00\x00\x00",  # mov eax, 1 (write)
            b"\xbf\x01\x00\x00\x00",  # mov edi, 1
            b"\x48\xbe" + struct.pack("<Q", message),  # mov rsi, message
            b"\xba" + struct.pack("<I", len(BANNER)),  # mov edx, length
            b"\x0f\x05",  # syscall
            b"\xb8\x22\x00\x00\x00",  # mov eax, 34 (pause)
            b"\x0f\x05",  # syscall
            b"\xeb\xf7",  # jmp to the pause: an init that ends panics the kernel
        )
    )
    # Padded with nops so that the message's address does not depend on the code's length.
    body = code.ljust(code_length, b"\x90") + BANNER
    size = _HEADERS + len(body)
    elf = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",  # 64 bits, little endian
        2,  # executable
        62,  # x86-64
        1,
        _LOAD_ADDRESS + _HEADERS,
        64,  # program headers follow
        0,
        0,
        64,
        56,
        1,
        0,
        0,
        0,
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, 0x1000)
    return elf + load + body


def _entry(
    number: int, name: str, mode: int, *, content: bytes = b"", device: tuple[int, int] = (0, 0)
) -> bytes:
    """See Documentation/driver-api/early-userspace/buffer-format.rst of the kernel: hexadecimal fields,
    name and content padded to four bytes.
    """
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return _padded(header) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
