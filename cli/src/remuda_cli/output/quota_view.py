"""Limits and usage of a project, side by side. Pure."""

from collections.abc import Sequence

from remuda.compute.v1 import quota_pb2

from remuda_cli.output.table import aligned
from remuda_cli.output.units import human_bytes


def quota_lines(quota: quota_pb2.Quota) -> Sequence[str]:
    """Rounded; exactly with -o json."""
    usage = quota.usage

    def row(what: str, used: int, limit: str) -> tuple[str, str, str, str]:
        most = getattr(quota, limit) if quota.HasField(limit) else None  # type: ignore[arg-type]
        if most is None:
            return what, human_bytes(used), "none", "-"
        return what, human_bytes(used), human_bytes(most), human_bytes(max(0, most - used))

    return aligned(
        [
            ("WHAT", "USED", "LIMIT", "LEFT"),
            ("images", str(usage.images), "none", "-"),
            row("image bytes, as guests see them", usage.image_virtual_bytes, "image_virtual_bytes"),
            row("image bytes, as stored", usage.image_stored_bytes, "image_stored_bytes"),
        ]
    )
