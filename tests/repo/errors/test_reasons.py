"""Error reasons are interface: callers branch on them."""

import re
from collections.abc import Callable
from pathlib import Path

from remuda_core.errors import Reason


def test_every_reason_is_upper_snake_case() -> None:
    assert not [
        reason.value for reason in Reason if not re.fullmatch(r"[A-Z][A-Z0-9_]*[A-Z0-9]", reason.value)
    ]


def test_every_reason_is_documented(read: Callable[[str], str]) -> None:
    document = read("docs/errors.md")
    assert not [reason.value for reason in Reason if f"`{reason.value}`" not in document], "run `make docs`"


def test_every_reason_is_raised_in_some_test(root: Path) -> None:
    suites = ("unit", "contract", "integration", "e2e")
    files = [path for suite in suites for path in (root / "tests" / suite).rglob("*.py")]
    # The registry's own tests walk over all reasons and raise none.
    text = "\n".join(
        path.read_text() for path in files if not path.is_relative_to(root / "tests/unit/errors")
    )
    unproven = [
        reason.value
        for reason in Reason
        if not re.search(rf"\bReason\.{reason.name}\b|[\"']{reason.value}[\"']", text)
    ]
    assert not unproven, "a reason that no test provokes may never be given"
