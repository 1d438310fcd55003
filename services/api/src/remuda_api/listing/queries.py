"""Which instances a list shows: project, filter, and what the caller may see."""

from collections.abc import Callable
from dataclasses import replace

from remuda.compute.v1 import instance_pb2 as pb
from remuda_core import names
from remuda_core.auth.caller import Caller
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd.keys import Keys
from remuda_core.ids import HostId, ProjectId

from remuda_api.admission.resolving import Resolver
from remuda_api.listing.filters import Filter, Term, parse_filter
from remuda_api.listing.instances import InstanceRow

FIELDS = ("state", "host", "display_name", "labels.")


class InstanceQueries:
    def __init__(self, keys: Keys, resolver: Resolver) -> None:
        self._keys = keys
        self._resolver = resolver

    def prefix(self, project: ProjectId) -> str:
        return self._keys.instances if project == names.ALL_PROJECTS else f"{self._keys.instances}{project}/"

    async def keep(self, text: str, caller: Caller) -> Callable[[InstanceRow], bool]:
        """Raises RemudaError FILTER_INVALID; a host that does not exist matches nothing."""
        parsed = parse_filter(text, FIELDS)
        wanted = Filter(tuple([await self._canonical(term) for term in parsed.terms]))

        def kept(row: InstanceRow) -> bool:
            project = ProjectId(row.entry.value.project)
            return caller.may_see(project) and wanted.holds(lambda field: field_of(row, field))

        return kept

    async def _canonical(self, term: Term) -> Term:
        match term.field:
            case "state":
                state = "STATE_" + term.value.upper().removeprefix("STATE_")
                if state not in pb.Instance.State.keys():  # noqa: SIM118 - an enum wrapper, not a dict
                    raise RemudaError(Reason.FILTER_INVALID, f"filter: there is no state {term.value}")
                return replace(term, value=state)
            case "host":
                host = HostId(term.value.removeprefix("hosts/"))
                try:
                    return replace(term, value=await self._resolver.host(names.host_name(host)))
                except RemudaError as error:
                    if error.reason is not Reason.HOST_NOT_FOUND:
                        raise RemudaError(Reason.FILTER_INVALID, f"filter: {error.message}") from error
                    return term
            case _:
                return term


def field_of(row: InstanceRow, field: str) -> str | None:
    """In the form that the canonical terms have."""
    match field:
        case "state":
            state = row.status.state if row.status else pb.Instance.STATE_CREATING
            return pb.Instance.State.Name(state)
        case "host":
            return row.status.host_id if row.status else ""
        case "display_name":
            return row.entry.value.display_name
        case _:
            return row.entry.value.labels.get(field.removeprefix("labels."))
