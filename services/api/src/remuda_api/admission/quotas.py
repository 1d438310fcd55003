"""Limits of projects. What they are compared with stands in the transactions that charge (see charging)."""

from collections.abc import Sequence

from remuda.compute.v1 import quota_pb2 as public
from remuda.store.v1 import image_pb2 as records
from remuda_core import names
from remuda_core.errors import invalid_argument
from remuda_core.etcd import ops
from remuda_core.ids import ProjectId

from remuda_api.admission.mutations import Answer, Mutations, Plan
from remuda_api.admission.requests import Call

_LIMITS = ("image_virtual_bytes", "image_stored_bytes")
_ALL_FIELDS = "*"
_MOST_PATHS = 128


class QuotaAdmission:
    def __init__(self, mutations: Mutations) -> None:
        self._mutations = mutations
        self._keys = mutations.keys

    async def get(self, name: str) -> public.Quota:
        """From etcd: limits and usage of one moment. A project that nobody has limited has no limits."""
        project = names.parse_quota(name)
        limits, usage, _ = await self._read(project)
        return _message(project, limits, usage)

    async def update(self, call: Call, request: public.UpdateQuotaRequest) -> Answer[public.Quota]:
        project = names.parse_quota(request.quota.name, field="quota.name")
        fields = _fields(request.update_mask.paths)
        key = self._keys.quota(project)

        async def attempt() -> Plan[public.Quota]:
            limits, usage, revision = await self._read(project)
            for field in fields:
                limits.ClearField(field)  # type: ignore[arg-type]
                if request.quota.HasField(field):  # type: ignore[arg-type]
                    setattr(limits, field, getattr(request.quota, field))
            return Plan(
                response=_message(project, limits, usage),
                compare=[ops.mod_is(key, revision)],
                success=[ops.put(key, limits.SerializeToString(deterministic=True))],
                witness=key,
            )

        return await self._mutations.run(call, attempt, public.Quota)

    async def _read(self, project: ProjectId) -> tuple[records.QuotaRecord, records.ImageUsageRecord, int]:
        limits, usage = await self._mutations.read(self._keys.quota(project), self._keys.image_usage(project))
        return (
            records.QuotaRecord.FromString(limits.value) if limits else records.QuotaRecord(),
            records.ImageUsageRecord.FromString(usage.value) if usage else records.ImageUsageRecord(),
            limits.mod_revision if limits else 0,
        )


def _message(
    project: ProjectId, limits: records.QuotaRecord, usage: records.ImageUsageRecord
) -> public.Quota:
    message = public.Quota(
        name=names.quota_name(project),
        usage=public.Usage(
            images=usage.images,
            image_virtual_bytes=usage.charge.virtual_bytes,
            image_stored_bytes=usage.charge.stored_bytes,
        ),
    )
    for field in _LIMITS:
        if limits.HasField(field):  # type: ignore[arg-type]
            setattr(message, field, getattr(limits, field))
    return message


def _fields(paths: Sequence[str]) -> Sequence[str]:
    """Raises RemudaError INVALID_ARGUMENT for a path that is no limit."""
    if len(paths) > _MOST_PATHS:
        raise invalid_argument("update_mask", f"has more than {_MOST_PATHS} paths")
    if not paths or _ALL_FIELDS in paths:
        return _LIMITS
    for path in paths:
        if path not in _LIMITS:
            raise invalid_argument("update_mask", f"{path} is no limit")
    return tuple(set(paths))
