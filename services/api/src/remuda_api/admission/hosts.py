"""CreateHost, DeleteHost, CordonHost, UncordonHost, SweepHost."""

import hashlib
import secrets
from collections import OrderedDict
from typing import Protocol

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
_TRIES = 10
_KEPT_TOKENS = 1024


class SweepsHosts(Protocol):
    async def __call__(
        self, host: HostId, *, validate_only: bool, principal: str
    ) -> public.SweepHostResponse: ...


class HostAdmission:
    def __init__(self, mutations: Mutations, resolver: Resolver, caches: Caches) -> None:
        self._mutations = mutations
        self._keys = mutations.keys
        self._resolver = resolver
        self._caches = caches
        self._tokens = _DrawnTokens()

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
        if not answer.replayed:
            self._tokens.keep(host, token)
            return answer
        return await self._with_token(host, answer)

    async def _with_token(
        self, host: HostId, answer: Answer[public.CreateHostResponse]
    ) -> Answer[public.CreateHostResponse]:
        """A repeated request gets the token that the first one drew as long as this replica remembers it, and
        otherwise another one: nobody has the first answer then, or he would not ask again.

        Nothing is drawn for a host that is enrolled, since no token would be accepted, nor for another host
        of the same UUID that was made since.
        """
        key = self._keys.host(host)
        for _ in range(_TRIES):
            seen, status = await self._mutations.read(key, self._keys.host_status(host))
            if seen is None or seen.create_revision != answer.revision:
                return answer
            if status and records.HostStatus.FromString(status.value).enrolled:
                return answer
            record = records.HostRecord.FromString(seen.value)
            if (known := self._tokens.of(host, record.enrolment_digest)) is not None:
                answer.response.enrolment_token = known
                return answer
            token, record.enrolment_digest = _token()
            result = await self._mutations.etcd.txn(
                compare=[ops.mod_is(key, seen.mod_revision)],
                success=[ops.put(key, record.SerializeToString(deterministic=True))],
                witness=key,
            )
            if result.succeeded:
                self._tokens.keep(host, token)
                answer.response.enrolment_token = token
                answer.response.host.etag = str(result.revision)
                return answer
        raise RemudaError(
            Reason.STORE_UNAVAILABLE,
            f"{names.host_name(host)} changed {_TRIES} times while its token was drawn",
            retry_after_seconds=1.0,
        )

    async def delete(self, call: Call, request: public.DeleteHostRequest) -> Answer[Empty]:
        async def attempt() -> Plan[Empty]:
            host, seen = await self._look(request.name)
            check_etag(names.host_name(host), request.etag, seen)
            record = records.HostRecord.FromString(seen.value)
            status = await self._mutations.etcd.get(self._keys.host_status(host))
            enrolled = status is not None and records.HostStatus.FromString(status.value).enrolled
            status_revision = status.mod_revision if status is not None else 0
            await self._require_empty(host)
            if enrolled and not record.cordoned:
                raise RemudaError(
                    Reason.HOST_NOT_CORDONED,
                    f"{names.host_name(host)} still takes new instances: cordon it first",
                )
            return Plan(
                response=Empty(),
                # The leader compares this key wherever it places something on the host. The host was looked
                # through after its cordon, or has never been one: what is not there now cannot come.
                compare=[
                    ops.mod_is(seen.key, seen.mod_revision),
                    ops.absent_prefix(f"{self._keys.debts}{host}/"),
                    *([] if enrolled else [ops.mod_is(self._keys.host_status(host), status_revision)]),
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

    async def sweep(
        self, call: Call, request: public.SweepHostRequest, swept_by: SweepsHosts
    ) -> Answer[public.SweepHostResponse]:
        """A repeated request is answered with what the first one removed, as long as that is remembered."""

        async def attempt() -> Plan[public.SweepHostResponse]:
            host, _ = await self._look(request.name)
            # It touches no key: when its answer cannot be kept for a repeated request, it is done again,
            # which finds less.
            swept = await swept_by(host, validate_only=call.validate_only, principal=call.principal)
            return Plan(response=swept)

        return await self._mutations.run(call, attempt, public.SweepHostResponse)

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


class _DrawnTokens:
    """Tokens that this replica has drawn, for requests that are repeated soon. Never stored anywhere."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[HostId, str] = OrderedDict()

    def keep(self, host: HostId, token: str) -> None:
        self._tokens[host] = token
        self._tokens.move_to_end(host)
        while len(self._tokens) > _KEPT_TOKENS:
            self._tokens.popitem(last=False)

    def of(self, host: HostId, digest: bytes) -> str | None:
        """None: this replica does not know the token that the digest stands for."""
        token = self._tokens.get(host)
        return token if token is not None and _digest(token) == digest else None


def _token() -> tuple[str, bytes]:
    token = secrets.token_urlsafe(32)
    return token, _digest(token)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
