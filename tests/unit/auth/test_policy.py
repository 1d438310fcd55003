"""Who may call what."""

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from remuda.compute.v1 import (
    flavor_pb2,
    host_pb2,
    instance_pb2,
    migration_pb2,
    moving_pb2,
    network_pb2,
    operation_pb2,
    quota_pb2,
)
from remuda.image.v1 import image_pb2
from remuda_core.auth.caller import ANONYMOUS, Caller, Kind
from remuda_core.auth.policy import POLICY, Rule, admit_caller, admit_request, require_project
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import ProjectId

DEMO = frozenset({ProjectId("demo")})
ALICE = Caller(kind=Kind.USER, name="alice", projects=DEMO)
ROOT = Caller(kind=Kind.USER, name="root", roles=frozenset({"admin"}))
API = Caller(kind=Kind.SERVICE, name="api")
SCHEDULER = Caller(kind=Kind.SERVICE, name="scheduler")
STORE = Caller(kind=Kind.SERVICE, name="image-store")
HOST = Caller(kind=Kind.HOST, name="6f2a1c5e-6e0e-4a51-9d0e-0d6f6b1c1a01")
EVERYBODY = (ALICE, ROOT, API, SCHEDULER, STORE, HOST, ANONYMOUS)

INSTANCES = "/remuda.compute.v1.InstanceService/"


def admitted(method: str) -> set[str]:
    found = set()
    for caller in EVERYBODY:
        try:
            admit_caller(POLICY.get(method), caller, method)
        except RemudaError:
            continue
        found.add(caller.principal)
    return found


def refusal(method: str, caller: Caller, request: Message) -> Reason | None:
    try:
        admit_caller(POLICY[method], caller, method)
        admit_request(POLICY[method], caller, request)
    except RemudaError as error:
        return error.reason
    return None


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("/remuda.compute.v1.InstanceService/", {"user/alice", "user/root"}),
        ("/remuda.compute.v1.MigrationService/", {"user/alice", "user/root"}),
        ("/remuda.compute.v1.HostService/", {"user/root"}),
        ("/remuda.compute.v1.OperationService/", {"user/alice", "user/root"}),
        ("/remuda.compute.v1.QuotaService/", {"user/alice", "user/root"}),
        ("/google.longrunning.Operations/", {"user/alice", "user/root"}),
        ("/remuda.image.v1.ImageService/", {"user/alice", "user/root", "service/api"}),
        ("/remuda.image.v1.ChunkService/", {HOST.principal}),
        ("/remuda.scheduler.v1.HostRegistryService/", {HOST.principal}),
        ("/remuda.scheduler.v1.LiveService/", {"service/api"}),
        ("/remuda.agent.v1.", {"service/scheduler"}),
        ("/grpc.", {caller.principal for caller in EVERYBODY}),
    ],
)
def test_each_service_is_for(prefix: str, names: set[str]) -> None:
    apart = (f"{INSTANCES}ReconcileInstance", "/remuda.compute.v1.QuotaService/UpdateQuota")
    methods = [method for method in POLICY if method.startswith(prefix) and method not in apart]
    assert methods
    assert {method: admitted(method) for method in methods} == dict.fromkeys(methods, names)


def test_only_admins_reconcile_an_instance_and_set_quotas() -> None:
    assert admitted(f"{INSTANCES}ReconcileInstance") == {"user/root"}
    assert admitted("/remuda.compute.v1.QuotaService/UpdateQuota") == {"user/root"}
    foreign = quota_pb2.GetQuotaRequest(name="projects/other/quota")
    assert refusal("/remuda.compute.v1.QuotaService/GetQuota", ALICE, foreign) is Reason.PERMISSION_DENIED


@pytest.mark.parametrize("noun", ["Flavor", "Network"])
def test_flavors_and_networks_are_read_by_users_and_changed_by_admins(noun: str) -> None:
    service = f"/remuda.compute.v1.{noun}Service/"
    for verb in (f"Get{noun}", f"List{noun}s"):
        assert admitted(service + verb) == {"user/alice", "user/root"}
    for verb in (f"Create{noun}", f"Delete{noun}"):
        assert admitted(service + verb) == {"user/root"}


def test_an_rpc_without_a_row_is_for_nobody() -> None:
    assert admitted("/remuda.compute.v1.InstanceService/Fly") == set()


def test_who_has_no_identity_is_told_to_get_one() -> None:
    with pytest.raises(RemudaError) as caught:
        admit_caller(Rule(users=True), ANONYMOUS, "/x")
    assert caught.value.reason is Reason.UNAUTHENTICATED


@pytest.mark.parametrize("name", ["projects/other/instances/web", "projects/demolition/instances/web"])
def test_a_member_of_one_project_sees_no_other(name: str) -> None:
    request = instance_pb2.GetInstanceRequest(name=name)
    assert refusal(INSTANCES + "GetInstance", ALICE, request) is Reason.PERMISSION_DENIED
    assert refusal(INSTANCES + "GetInstance", ROOT, request) is None


@pytest.mark.parametrize("name", ["", "web", "hosts/a", "projects/", "projects/../instances/web"])
def test_a_name_without_a_project_is_refused_before_any_handler(name: str) -> None:
    for caller in (ALICE, ROOT):
        request = instance_pb2.GetInstanceRequest(name=name)
        assert refusal(INSTANCES + "GetInstance", caller, request) is Reason.INVALID_ARGUMENT


def test_all_projects_may_be_listed_and_watched_only() -> None:
    listing = instance_pb2.ListInstancesRequest(parent="projects/-")
    assert refusal(INSTANCES + "ListInstances", ALICE, listing) is None
    watching = instance_pb2.WatchInstancesRequest(parent="projects/-")
    assert refusal(INSTANCES + "WatchInstances", ALICE, watching) is None
    for caller in (ALICE, ROOT):
        request = instance_pb2.CreateInstanceRequest(parent="projects/-")
        assert refusal(INSTANCES + "CreateInstance", caller, request) is Reason.INVALID_ARGUMENT


def test_images_of_other_projects_may_be_asked_for_and_never_changed() -> None:
    """What may be seen of them is the handlers' to say: the row does not know who shares with whom."""
    service, foreign = "/remuda.image.v1.ImageService/", "projects/other/images/a"
    launch = instance_pb2.CreateInstanceRequest(
        parent="projects/demo", instance=instance_pb2.Instance(image=foreign)
    )
    assert refusal(INSTANCES + "CreateInstance", ALICE, launch) is None
    for read in (image_pb2.GetImageRequest(name=foreign), image_pb2.DownloadImageRequest(name=foreign)):
        assert refusal(service + read.DESCRIPTOR.name.removesuffix("Request"), ALICE, read) is None
    for write in (
        image_pb2.UpdateImageRequest(image=image_pb2.Image(name=foreign)),
        image_pb2.DeleteImageRequest(name=foreign),
        image_pb2.GetUploadRequest(name=foreign),
        image_pb2.UploadImageRequest(name=foreign),
        image_pb2.CreateImageRequest(parent="projects/other"),
        image_pb2.ListImagesRequest(parent="projects/other", include_visible=True),
    ):
        method = service + write.DESCRIPTOR.name.removesuffix("Request")
        assert refusal(method, ALICE, write) is Reason.PERMISSION_DENIED


def test_an_update_is_checked_by_the_name_inside_the_resource() -> None:
    request = instance_pb2.UpdateInstanceRequest(
        instance=instance_pb2.Instance(name="projects/other/instances/web")
    )
    assert refusal(INSTANCES + "UpdateInstance", ALICE, request) is Reason.PERMISSION_DENIED


def test_only_admins_choose_hosts() -> None:
    launch = instance_pb2.CreateInstanceRequest(parent="projects/demo", host="hosts/a")
    move = moving_pb2.LiveMigrateInstanceRequest(name="projects/demo/instances/web", target_host="hosts/a")
    for verb, request in (("CreateInstance", launch), ("LiveMigrateInstance", move)):
        assert refusal(INSTANCES + verb, ALICE, request) is Reason.PERMISSION_DENIED
        assert refusal(INSTANCES + verb, ROOT, request) is None
    asserted = moving_pb2.LiveMigrateInstanceRequest(name=move.name, source_host="hosts/a")
    assert refusal(INSTANCES + "LiveMigrateInstance", ALICE, asserted) is None
    explain = host_pb2.ExplainPlacementRequest(flavor="flavors/small")
    assert refusal("/remuda.compute.v1.HostService/ExplainPlacement", ALICE, explain) is (
        Reason.PERMISSION_DENIED
    )


def test_every_field_that_a_rule_names_exists_in_the_request() -> None:
    for file in (
        flavor_pb2,
        host_pb2,
        image_pb2,
        instance_pb2,
        migration_pb2,
        network_pb2,
        operation_pb2,
        quota_pb2,
    ):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                rule = POLICY[f"/{service.full_name}/{method.name}"]
                for path in (*rule.projects, *rule.admin_fields):
                    assert _has_field(method.input_type, path.split(".")), f"{method.full_name}: {path}"


def _has_field(message: Descriptor | None, path: list[str]) -> bool:
    if message is None or path[0] not in message.fields_by_name:
        return False
    return len(path) == 1 or _has_field(message.fields_by_name[path[0]].message_type, path[1:])


def test_a_handler_that_learns_the_project_later_asks_the_same_question() -> None:
    require_project(ALICE, ProjectId("demo"))
    require_project(ROOT, ProjectId("other"))
    with pytest.raises(RemudaError) as caught:
        require_project(ALICE, ProjectId("other"))
    assert caught.value.reason is Reason.PERMISSION_DENIED
