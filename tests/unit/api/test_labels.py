"""Labels: what an update mask changes, and how many bytes there may be."""

import pytest
from remuda_api.admission.labels import MAX_LABEL_BYTES, changed_labels, check_labels, is_label_path
from remuda_core.errors import Reason, RemudaError

BEFORE = {"tier": "web", "team": "a"}


@pytest.mark.parametrize(
    ("wanted", "paths", "after"),
    [
        ({"x": "1"}, {"labels"}, {"x": "1"}),
        ({}, {"labels"}, {}),
        ({"x": "1"}, {"display_name"}, BEFORE),
        ({"tier": "db", "x": "1"}, {"labels.tier"}, {"tier": "db", "team": "a"}),
        ({}, {"labels.tier"}, {"team": "a"}),
        ({"a.b": "1"}, {"labels.a.b", "labels.team"}, {"tier": "web", "a.b": "1"}),
        ({"x": "1"}, {"labels", "labels.tier"}, {"x": "1"}),
    ],
)
def test_a_mask_replaces_all_labels_or_those_it_names(
    wanted: dict[str, str], paths: set[str], after: dict[str, str]
) -> None:
    assert changed_labels(BEFORE, wanted, paths) == after


def test_a_path_below_labels_names_a_key() -> None:
    assert is_label_path("labels.tier")
    assert not is_label_path("labels.")
    assert not is_label_path("labelsx")


@pytest.mark.parametrize(
    "labels",
    [
        {f"k{number}": "" for number in range(65)},
        {f"k{number}": "x" * 255 for number in range(32)},
        {"k": "\u00e9" * (MAX_LABEL_BYTES // 2)},
    ],
)
def test_too_many_labels_or_bytes_of_them_are_refused(labels: dict[str, str]) -> None:
    with pytest.raises(RemudaError) as caught:
        check_labels(labels, "instance.labels")
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert caught.value.violations[0].subject == "instance.labels"


def test_labels_within_both_limits_pass() -> None:
    check_labels({f"k{number:02}": "x" * 125 for number in range(64)}, "instance.labels")
