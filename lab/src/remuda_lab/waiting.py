"""Bounded waits that say what they saw last."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from remuda_lab.errors import WaitTimeout

T = TypeVar("T")


def wait_for(
    what: str,
    probe: Callable[[], T | None],
    *,
    timeout: float,
    interval: float = 0.05,
    status: Callable[[], object] | None = None,
) -> T:
    """Call ``probe`` until it returns something true, and return that.

    ``timeout`` and ``interval`` are in seconds. An exception of a probe counts as "not yet" and becomes the
    last status. Raises WaitTimeout with ``what`` and the last status.
    """
    deadline = time.monotonic() + timeout
    last: object = "nothing yet"
    while True:
        try:
            value = probe()
        except Exception as error:
            last = f"{type(error).__name__}: {error}"
        else:
            if value:
                return value
            last = repr(value) if status is None else status()
        if time.monotonic() >= deadline:
            raise WaitTimeout(f"{what}: not so after {timeout:g} s; last seen: {last}")
        time.sleep(interval)
