"""What images count against their project's quota, exact under concurrency.

Every image's record says what was charged for it; image_usage/<project> is the sum of these. Both change in
one transaction, which compares the sum: of two that would together go beyond the limit, one loses.
"""

from dataclasses import dataclass

from remuda.store.v1.image_pb2 import ImageCharge, ImageUsageRecord, QuotaRecord

from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd import ops
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.ids import ProjectId


@dataclass(frozen=True, slots=True, kw_only=True)
class Charging:
    """What the transaction that changes the image's record has to hold as well."""

    compare: tuple[ops.Compare, ...]
    success: tuple[ops.Op, ...]
    left_stored_bytes: int | None
    """What the project may still store after this; None: no limit."""


async def plan_charge(
    etcd: Etcd,
    keys: Keys,
    project: ProjectId,
    *,
    before: ImageCharge | None = None,
    after: ImageCharge | None = None,
) -> Charging:
    """From what the image's record says it is charged with (None: there is no record) to what it will say
    (None: it goes). Plan it anew when the transaction loses.

    Raises RemudaError QUOTA_EXCEEDED where a charge grows beyond the project's limit; what shrinks, or stays,
    is never refused.
    """
    usage_key, quota_key = keys.image_usage(project), keys.quota(project)
    result = await etcd.txn(success=[ops.get(usage_key), ops.get(quota_key)])
    usage_kv, quota_kv = (response.kv for response in result.responses)
    usage = ImageUsageRecord.FromString(usage_kv.value) if usage_kv else ImageUsageRecord()
    quota = QuotaRecord.FromString(quota_kv.value) if quota_kv else QuotaRecord()
    changed = charged(usage, before=before, after=after)
    check(project, quota, usage, changed)
    left = None
    if quota.HasField("image_stored_bytes"):
        left = max(0, quota.image_stored_bytes - changed.charge.stored_bytes)
    return Charging(
        compare=(
            # A limit that is lowered at the same time counts, or is set after this.
            ops.mod_is(usage_key, usage_kv.mod_revision if usage_kv else 0),
            ops.mod_is(quota_key, quota_kv.mod_revision if quota_kv else 0),
        ),
        success=(ops.put(usage_key, changed.SerializeToString(deterministic=True)),),
        left_stored_bytes=left,
    )


def charged(
    usage: ImageUsageRecord, *, before: ImageCharge | None, after: ImageCharge | None
) -> ImageUsageRecord:
    """The sum with one image's charge changed; None: it does not exist."""
    old, new = before or ImageCharge(), after or ImageCharge()
    changed = ImageUsageRecord(images=usage.images + (after is not None) - (before is not None))
    changed.charge.virtual_bytes = usage.charge.virtual_bytes + new.virtual_bytes - old.virtual_bytes
    changed.charge.stored_bytes = usage.charge.stored_bytes + new.stored_bytes - old.stored_bytes
    return changed


def check(project: ProjectId, quota: QuotaRecord, usage: ImageUsageRecord, changed: ImageUsageRecord) -> None:
    """Raises QUOTA_EXCEEDED."""
    for field, words in (("virtual_bytes", "as guests see them"), ("stored_bytes", "as stored")):
        limit = f"image_{field}"
        if not quota.HasField(limit):  # type: ignore[arg-type]
            continue
        most, now, then = getattr(quota, limit), getattr(usage.charge, field), getattr(changed.charge, field)
        if then > now and then > most:
            raise RemudaError(
                Reason.QUOTA_EXCEEDED,
                f"project {project} may have {most} bytes of images {words}, has {now} and would have {then}",
                metadata={"limit": limit, "allowed": str(most), "used": str(now), "needed": str(then)},
            )
