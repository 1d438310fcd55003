"""Labels: how a change of them is asked for, and how many bytes they may have. Pure."""

from collections.abc import Collection, Mapping

from remuda_core.errors import invalid_argument

MAX_LABELS = 64
MAX_LABEL_BYTES = 8 << 10
"""Keys and values of one resource: they stand in each of its records, lists and watches."""
_ONE = "labels."


def is_label_path(path: str) -> bool:
    """`labels.KEY` of an update mask; a key may hold dots itself."""
    return path.startswith(_ONE) and len(path) > len(_ONE)


def changed_labels(
    before: Mapping[str, str], wanted: Mapping[str, str], paths: Collection[str]
) -> dict[str, str]:
    """`labels` replaces all of them, `labels.KEY` sets that one, or removes it where `wanted` has none."""
    if "labels" in paths:
        return dict(wanted)
    after = dict(before)
    for key in (path.removeprefix(_ONE) for path in paths if is_label_path(path)):
        after.pop(key, None)
        if key in wanted:
            after[key] = wanted[key]
    return after


def check_labels(labels: Mapping[str, str], field: str) -> None:
    """The form of each stands in the .proto. Raises RemudaError INVALID_ARGUMENT."""
    if len(labels) > MAX_LABELS:
        raise invalid_argument(field, f"{len(labels)} labels are more than {MAX_LABELS}")
    taken = sum(len(key.encode()) + len(value.encode()) for key, value in labels.items())
    if taken > MAX_LABEL_BYTES:
        raise invalid_argument(field, f"{taken} bytes of labels are more than {MAX_LABEL_BYTES}")
