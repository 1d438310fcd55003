"""Who may call which rpc: one row for every rpc of every service, and the functions that apply it.

A call without a row is refused. Rows for users also say where the project stands in the request; whoever is
neither a member of it nor an admin is refused before the handler runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from google.protobuf.message import Message
from remuda.compute.v1.moving_pb2 import LiveMigrateInstanceRequest
from remuda.image.v1.image_pb2 import Image

from remuda_core import names
from remuda_core.auth.caller import Caller, Kind
from remuda_core.errors import Reason, RemudaError, invalid_argument, permission_denied
from remuda_core.ids import ProjectId


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Who may call. Nobody but those that are named."""

    anyone: bool = False
    """Without any identity."""
    users: bool = False
    """Users; subject to the fields below."""
    services: frozenset[str] = frozenset()
    """Services by name; trusted with every project."""
    hosts: bool = False
    """Agents; the handler compares the host that the request is about with the caller's."""
    admin: bool = False
    """Users need the admin role."""
    projects: tuple[str, ...] = ()
    """Field paths of resource names; users must be members of the project of each. The first must be set."""
    wildcard: bool = False
    """`projects/-` is accepted there; the handler shows only what `Caller.may_see`."""
    admin_fields: tuple[str, ...] = ()
    """Fields that only admins may set."""
    admin_values: tuple[tuple[str, int], ...] = ()
    """Field paths of enums, each with the one value that only admins may give."""


_ANYONE = Rule(anyone=True)
_USER = Rule(users=True)
_ADMIN = Rule(users=True, admin=True)
_NAME = Rule(users=True, projects=("name",))
_PARENT = Rule(users=True, projects=("parent",))
_ANY_PARENT = Rule(users=True, projects=("parent",), wildcard=True)
_API = Rule(services=frozenset({"api"}))
_SCHEDULER = Rule(services=frozenset({"scheduler"}))
_HOST = Rule(hosts=True)


def _and_api(rule: Rule) -> Rule:
    # The gateway forwards what it has checked itself.
    return replace(rule, services=frozenset({"api"}))


def _service(name: str, rules: Mapping[str, Rule]) -> dict[str, Rule]:
    return {f"/{name}/{method}": rule for method, rule in rules.items()}


POLICY: Mapping[str, Rule] = MappingProxyType(
    {
        **_service(
            "remuda.compute.v1.InstanceService",
            {
                # The image may be another project's: the handler looks whether the new instance's may see it.
                "CreateInstance": Rule(users=True, projects=("parent",), admin_fields=("host",)),
                "GetInstance": _NAME,
                "ListInstances": _ANY_PARENT,
                "UpdateInstance": Rule(users=True, projects=("instance.name",)),
                "DeleteInstance": _NAME,
                "StartInstance": _NAME,
                "StopInstance": _NAME,
                "LiveMigrateInstance": Rule(
                    users=True,
                    projects=("name",),
                    admin_fields=("target_host",),
                    admin_values=(("priority", LiveMigrateInstanceRequest.PRIORITY_MAINTENANCE),),
                ),
                "CheckMigration": Rule(
                    users=True, projects=("name",), admin_fields=("target_host", "probe_limit")
                ),
                "SnapshotInstance": _NAME,
                "ReconcileInstance": Rule(users=True, admin=True, projects=("name",)),
                "ListAllowedActions": _NAME,
                "ListInstanceEvents": _PARENT,
                "WatchInstances": _ANY_PARENT,
                "GetConsoleOutput": _NAME,
            },
        ),
        **_service(
            "remuda.compute.v1.MigrationService",
            {
                "GetMigration": _NAME,
                "ListMigrations": _PARENT,
                # Whoever may ask for a move may steer it.
                "ControlMigration": Rule(users=True, projects=("attach.name",)),
            },
        ),
        **_service(
            "remuda.compute.v1.HostService",
            {
                "CreateHost": _ADMIN,
                "GetHost": _ADMIN,
                "ListHosts": _ADMIN,
                "DeleteHost": _ADMIN,
                "CordonHost": _ADMIN,
                "UncordonHost": _ADMIN,
                "SweepHost": _ADMIN,
                "ExplainPlacement": _ADMIN,
            },
        ),
        **_service(
            "remuda.compute.v1.FlavorService",
            {"CreateFlavor": _ADMIN, "GetFlavor": _USER, "ListFlavors": _USER, "DeleteFlavor": _ADMIN},
        ),
        **_service(
            "remuda.compute.v1.NetworkService",
            {"CreateNetwork": _ADMIN, "GetNetwork": _USER, "ListNetworks": _USER, "DeleteNetwork": _ADMIN},
        ),
        **_service(
            "remuda.compute.v1.QuotaService",
            {"GetQuota": _NAME, "UpdateQuota": Rule(users=True, admin=True, projects=("quota.name",))},
        ),
        # An operation's name does not say its project: the handlers look it up and ask `require_project`.
        **_service("remuda.compute.v1.OperationService", {"WatchOperation": _USER}),
        **_service(
            "google.longrunning.Operations",
            {
                "ListOperations": _USER,
                "GetOperation": _USER,
                "DeleteOperation": _USER,
                "CancelOperation": _USER,
                "WaitOperation": _USER,
            },
        ),
        **_service(
            "remuda.image.v1.ImageService",
            {
                "CreateImage": Rule(
                    users=True,
                    projects=("parent",),
                    services=frozenset({"api"}),
                    admin_values=(("image.visibility", Image.VISIBILITY_PUBLIC),),
                ),
                # What a caller may read is more than what is in the caller's projects: the handlers answer
                # IMAGE_NOT_FOUND for the rest, so that nobody learns what there is.
                "GetImage": _and_api(_USER),
                "DownloadImage": _and_api(_USER),
                "ListImages": _and_api(_PARENT),
                # Whether it makes the image public follows from the mask: the handler knows.
                "UpdateImage": _and_api(Rule(users=True, projects=("image.name",))),
                "DeleteImage": _and_api(_NAME),
                "GetUpload": _and_api(_NAME),
                "UploadImage": _and_api(_NAME),
            },
        ),
        **_service(
            "remuda.image.v1.ChunkService",
            {
                "GetManifest": _HOST,
                "ReadChunks": _HOST,
                "FindChunks": _HOST,
                "WriteChunks": _HOST,
                "CommitImage": _HOST,
                "RepairChunks": _HOST,
            },
        ),
        **_service("remuda.scheduler.v1.HostRegistryService", {"Attach": _HOST}),
        **_service(
            "remuda.scheduler.v1.LiveService",
            {
                "WatchProgress": _API,
                "Explain": _API,
                "ReadConsole": _API,
                "CheckMigration": _API,
                "ControlMigration": _API,
                "PlanReconcile": _API,
                "SweepHost": _API,
            },
        ),
        **_service(
            "remuda.agent.v1.AgentService",
            {
                "Fence": _SCHEDULER,
                "RunStep": _SCHEDULER,
                "ObserveInstance": _SCHEDULER,
                "ReadConsole": _SCHEDULER,
                "Survey": _SCHEDULER,
                "Sweep": _SCHEDULER,
                "OfferChunks": _SCHEDULER,
            },
        ),
        **_service("remuda.agent.v1.MigrationService", {"Migrate": _SCHEDULER}),
        **_service(
            "remuda.agent.v1.ProbeService",
            {
                "DescribeGuest": _SCHEDULER,
                "AssessGuest": _SCHEDULER,
                "ResolveHost": _SCHEDULER,
                "Listen": _SCHEDULER,
                "Connect": _SCHEDULER,
                "OpenLibvirt": _SCHEDULER,
                "WriteNonce": _SCHEDULER,
                "ReadNonce": _SCHEDULER,
                "RemoveNonce": _SCHEDULER,
                "MeasureDirtyRate": _SCHEDULER,
            },
        ),
        # Load balancers have no identity; what the services are is no secret either.
        **_service("grpc.health.v1.Health", {"Check": _ANYONE, "List": _ANYONE, "Watch": _ANYONE}),
        **_service("grpc.reflection.v1alpha.ServerReflection", {"ServerReflectionInfo": _ANYONE}),
        **_service("grpc.reflection.v1.ServerReflection", {"ServerReflectionInfo": _ANYONE}),
    }
)


def admit_caller(rule: Rule | None, caller: Caller, method: str) -> None:
    """Before any message is read. Raises RemudaError UNAUTHENTICATED or PERMISSION_DENIED."""
    if rule is not None and rule.anyone:
        return
    if caller.kind is Kind.ANONYMOUS:
        raise RemudaError(Reason.UNAUTHENTICATED, "a client certificate or a bearer token is needed")
    if rule is None or not _is_named(rule, caller):
        raise permission_denied(f"{caller.principal} may not call {method}", method=method)
    if caller.kind is Kind.USER and rule.admin and not caller.is_admin:
        raise permission_denied(f"{method} needs the admin role", method=method, role="admin")


def admit_request(rule: Rule, caller: Caller, request: Message) -> None:
    """For the first message of a call, after `admit_caller`.

    Raises RemudaError PERMISSION_DENIED, or INVALID_ARGUMENT where a name has no project to check.
    """
    if caller.kind is not Kind.USER:
        return
    for position, path in enumerate(rule.projects):
        name = str(_field(request, path))
        if name or position == 0:
            _admit_name(rule, caller, path, name)
    for path in rule.admin_fields:
        if _field(request, path) and not caller.is_admin:
            raise permission_denied(f"setting {path} needs the admin role", field=path, role="admin")
    for path, value in rule.admin_values:
        if _field(request, path) == value and not caller.is_admin:
            raise permission_denied(f"this value of {path} needs the admin role", field=path, role="admin")


def require_project(caller: Caller, project: ProjectId) -> None:
    """For handlers that learn the project only from what they read. Raises PERMISSION_DENIED."""
    if not caller.may_see(project):
        raise permission_denied(f"{caller.principal} is no member of project {project}", project=project)


def _is_named(rule: Rule, caller: Caller) -> bool:
    match caller.kind:
        case Kind.USER:
            return rule.users
        case Kind.SERVICE:
            return caller.name in rule.services
        case Kind.HOST:
            return rule.hosts
        case Kind.ANONYMOUS:
            return False


def _admit_name(rule: Rule, caller: Caller, path: str, name: str) -> None:
    project = names.project_of(name)
    if project is None:
        raise invalid_argument(path, f"{name!r} does not begin with projects/{{project}}")
    if project != names.ALL_PROJECTS:
        require_project(caller, project)
    elif not rule.wildcard:
        raise invalid_argument(path, "projects/- is only for listing and watching")


def _field(message: Message, path: str) -> object:
    value: object = message
    for part in path.split("."):
        value = getattr(value, part)
    return value
