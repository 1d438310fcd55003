"""CreateHost, DeleteHost, CordonHost, UncordonHost."""

import hashlib
import secrets

from google.protobuf.empty_pb2 import Empty
from remuda.compute.v1 import host_pb2 as public
from remuda.store.v1 import host_pb2 as records
from remuda_core import names
from remuda_core.errors import Reason, RemudaError, already_exists, invalid_argument, not_found
from remuda_core.etcd import ops
from remuda_core.etcd.cache import Entry
from remuda_core.etcd.model import KeyValue
from remuda_core.ids import HostId

from remuda_api.admission.etags import check_etag
from remuda_api.admission.mutations import Answer, Mutations, Plan
from remuda_api.admission.operations import now
from remuda_api.admission.requests import Call
from remuda_api.admission.resolving import Resolver, check_display_name, is_uuid
from remuda_api.store.caches import Caches
from remuda_api.store.hosts import host_message

_SETTLE_SECONDS = 3.0


class HostAdmission:
    def __init__(self, mutations: Mutations, resolver: Resolver, caches: Caches) -> None:
        self._mutations = mutations
        self._keys = mutations.keys
        self._resolver = resolver
        self._caches = caches

    async def create(
        self, call: Call, request: public.CreateHostRequest
    ) -> Answer[public.CreateHostResponse]:
        host = HostId(request.host_id.lower())
        if not is_uuid(host):
            raise invalid_argument("host_id", "is no UUID")
        check_display_name(request.host.display_name, "host.display_name")
        token, digest = _token()
        record = records.HostRecord(
            id=host, display_name=request.host.display_name, enrolment_digest=digest, create_time=now()
        )
        key, name_key = self._keys.host(host), self._keys.host_name(record.display_name)
        message = host_message(Entry(key=key, value=record, create_revision=0, mod_revision=0), None, None)

        async def attempt() -> Plan[public.CreateHostResponse]:
            seen, name = await self._mutations.read(key, name_key)
            if seen is not None:
                raise already_exists(names.host_name(host))
            if name is not None:
                other = names.host_name(HostId(name.value.decode()))
                raise already_exists(other, f"{other} has the name {record.display_name}")
            return Plan(
                response=public.CreateHostResponse(host=message, enrolment_token=token),
                # Whoever reads etcd must not be able to enrol as this host.
                secret_free=public.CreateHostResponse(host=message),
                compare=[ops.absent(key), ops.absent(name_key)],
                success=[
                    ops.put(key, record.SerializeToString(deterministic=True)),
                    ops.put(name_key, host.encode()),
                ],
                witness=key,
            )

        answer = await self._mutations.run(call, attempt, public.CreateHostResponse)
        if call.validate_only:
            answer.response.ClearField("enrolment_token")
        return await self._with_fresh_token(host, answer) if answer.replayed else answer

    async def _with_fresh_token(
        self, host: HostId, answer: Answer[public.CreateHostResponse]
    ) -> Answer[public.CreateHostResponse]:
        """A repeated request did not get the first answer, and nobody has its token: draw another one.

        Once the host is enrolled there is nothing to draw: no token would be accepted.
        """
        key = self._keys.host(host)
        seen, status = await self._mutations.read(key, self._keys.host_status(host))
        if seen is None or (status and records.HostStatus.FromString(status.value).enrolled):
            return answer
        record = records.HostRecord.FromString(seen.value)
        token, record.enrolment_digest = _token()
        result = await self._mutations.etcd.txn(
            compare=[ops.mod_is(key, seen.mod_revision)],
            success=[ops.put(key, record.SerializeToString(deterministic=True))],
            witness=key,
        )
        if result.succeeded:
            answer.response.enrolment_token = token
            answer.response.host.etag = str(result.revision)
        return answer

    async def delete(self, call: Call, request: public.DeleteHostRequest) -> Answer[Empty]:
        async def attempt() -> Plan[Empty]:
            host, seen = await self._look(request.name)
            check_etag(names.host_name(host), request.etag, seen)
            await self._require_empty(host)
            record = records.HostRecord.FromString(seen.value)
            return Plan(
                response=Empty(),
                # The leader compares this key wherever it places something on the host.
                compare=[
                    ops.mod_is(seen.key, seen.mod_revision),
                    ops.absent_prefix(f"{self._keys.debts}{host}/"),
                ],
                success=[
                    ops.delete(seen.key),
                    ops.delete(self._keys.host_name(record.display_name)),
                    # With the host: a later CreateHost of the same UUID must find nothing enrolled.
                    ops.delete(self._keys.host_status(host)),
                ],
            )

        return await self._mutations.run(call, attempt, Empty)

    async def set_cordon(
        self, call: Call, request: public.CordonHostRequest | public.UncordonHostRequest, *, cordoned: bool
    ) -> Answer[public.Host]:
        async def attempt() -> Plan[public.Host]:
            host, seen = await self._look(request.name)
            record = records.HostRecord.FromString(seen.value)
            unchanged = record.cordoned == cordoned
            record.cordoned = cordoned
            entry = Entry(
                key=seen.key,
                value=record,
                create_revision=seen.create_revision,
                mod_revision=seen.mod_revision if unchanged else 0,
            )
            status = self._caches.host_statuses.get(self._keys.host_status(host))
            response = host_message(entry, status.value if status is not None else None, None)
            if unchanged:
                return Plan(response=response)
            return Plan(
                response=response,
                compare=[ops.mod_is(seen.key, seen.mod_revision)],
                success=[ops.put(seen.key, record.SerializeToString(deterministic=True))],
                witness=seen.key,
            )

        return await self._mutations.run(call, attempt, public.Host)

    async def _look(self, name: str) -> tuple[HostId, KeyValue]:
        host = await self._resolver.host(name)
        seen = await self._mutations.etcd.get(self._keys.host(host))
        if seen is None:
            raise not_found(name)
        return host, seen

    async def _require_empty(self, host: HostId) -> None:
        """Raises HOST_IN_USE. Looks at what etcd holds now, not at what the watches have brought so far."""
        present = (await self._mutations.etcd.range_key(self._keys.host(host))).revision
        await self._caches.statuses.wait_revision(present, _SETTLE_SECONDS)
        await self._caches.journals.wait_revision(present, _SETTLE_SECONDS)
        there = [e.value for e in self._caches.statuses.items() if e.value.host_id == host]
        held = [
            one for e in self._caches.journals.items() for one in e.value.reservations if one.host_id == host
        ]
        debts = await self._mutations.etcd.count(f"{self._keys.debts}{host}/")
        if there or held or debts:
            raise RemudaError(
                Reason.HOST_IN_USE,
                f"{names.host_name(host)} holds {len(there)} instances, {len(held)} reservations, "
                f"{debts} debts",
                metadata={"instances": str(len(there)), "reservations": str(len(held)), "debts": str(debts)},
            )


def _token() -> tuple[str, bytes]:
    token = secrets.token_urlsafe(32)
    return token, hashlib.sha256(token.encode()).digest()
