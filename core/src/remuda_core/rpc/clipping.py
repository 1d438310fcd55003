"""Errors cut to a size that can travel: what clients send comes back in messages and details.

gRPC refuses trailers beyond 8 KiB (by default), and the caller is then told nothing but that. A message
travels twice, once percent-encoded (every byte that is not printable ASCII becomes three).
"""

from collections.abc import Callable, Iterator
from functools import partial

from remuda_core.errors import RemudaError, Violation

_CUT = "..."
_MESSAGE_BYTES = 1024
# (bytes of a text, number of metadata entries and of violations), tried in this order.
_STEPS = ((512, 24), (256, 16), (128, 12), (64, 8), (32, 8))

Clip = Callable[[RemudaError], RemudaError]


def clip_text(text: str, most: int) -> str:
    """At most `most` bytes of UTF-8; "..." stands for what was cut off."""
    data = text.encode(errors="replace")
    if len(data) <= most:
        return data.decode()
    return data[: most - len(_CUT)].decode(errors="ignore") + _CUT


def clip_message(message: str) -> str:
    """At most 1024 bytes as gRPC encodes it (percent-encoding of gRPC over HTTP/2)."""
    text = clip_text(message, _MESSAGE_BYTES)
    left = _MESSAGE_BYTES - len(_CUT)
    if _encoded(text) <= _MESSAGE_BYTES:
        return text
    kept = []
    for character in text:
        left -= _encoded(character)
        if left < 0:
            break
        kept.append(character)
    return "".join(kept) + _CUT


def clips() -> Iterator[Clip]:
    """Ways to cut an error's details, each shorter than the one before; the last one always fits."""
    for length, entries in _STEPS:
        yield partial(_clipped, length=length, entries=entries)


def _clipped(error: RemudaError, *, length: int, entries: int) -> RemudaError:
    metadata = list(error.metadata.items())[:entries]
    return RemudaError(
        error.reason,
        error.message,
        metadata={clip_text(key, length): clip_text(value, length) for key, value in metadata},
        retry_after_seconds=error.retry_after_seconds,
        violations=[
            Violation(clip_text(one.subject, length), clip_text(one.description, length))
            for one in error.violations[:entries]
        ],
        resource=clip_text(error.resource, length),
    )


def _encoded(text: str) -> int:
    return sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in text.encode())
