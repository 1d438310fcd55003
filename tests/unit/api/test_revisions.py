"""The revision that a read asks for."""

import pytest
from remuda_api.handlers.revisions import MIN_REVISION_KEY, min_revision
from remuda_core.errors import Reason, RemudaError


def test_a_revision_is_read_from_the_metadata() -> None:
    assert min_revision([("x", "7"), (MIN_REVISION_KEY, "42")]) == 42
    assert min_revision([("x", "7")]) == 0


@pytest.mark.parametrize("value", ["", "-1", "1.5", "9" * 5000, "9" * 20, "\u0661", "1\n", b"1"])
def test_anything_else_is_refused_as_malformed(value: str | bytes) -> None:
    with pytest.raises(RemudaError) as caught:
        min_revision([(MIN_REVISION_KEY, value)])
    assert caught.value.reason is Reason.INVALID_ARGUMENT
