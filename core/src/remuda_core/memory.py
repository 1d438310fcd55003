"""glibc's malloc for services that move bytes."""

import ctypes

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 128 << 20
_LARGEST_MMAP_THRESHOLD = 32 << 20


def keep_freed_memory() -> None:
    """Frames and chunks of megabytes come and go: have their memory used again instead of given back.

    Otherwise each of them is mapped, its pages are filled with zeros by the kernel one fault after another,
    and it is unmapped: a third of the processor time of a transfer. Costs up to 128 MiB that stay resident
    after a transfer. Does nothing where the C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
