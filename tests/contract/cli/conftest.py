"""A gateway in this process: the public services over real gRPC, canned state, scripted operations."""

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2
from google.protobuf.message import Message
from google.rpc import status_pb2
from remuda.compute.v1 import (
    flavor_pb2,
    flavor_pb2_grpc,
    host_pb2,
    host_pb2_grpc,
    instance_pb2,
    instance_pb2_grpc,
    migration_pb2,
    migration_pb2_grpc,
    moving_pb2,
    network_pb2,
    network_pb2_grpc,
    operation_pb2,
    operation_pb2_grpc,
    quota_pb2,
    quota_pb2_grpc,
    reconcile_pb2,
)
from remuda.image.v1 import image_pb2, image_pb2_grpc
from remuda_cli.main import run
from remuda_core.errors import Reason, RemudaError, not_found
from remuda_core.rpc.status import to_status

PROJECT = "projects/demo"
WEB = "6f1c8a5e-0000-4000-8000-000000000001"
WORKER = "6f1c8a5e-0000-4000-8000-000000000002"
HOST1 = "aaaaaaaa-0000-4000-8000-000000000001"
HOST2 = "bbbbbbbb-0000-4000-8000-000000000002"
OPERATION = "0e000000-0000-4000-8000-00000000000a"
MIGRATION = "3a000000-0000-4000-8000-00000000000b"
Metadata = operation_pb2.OperationMetadata


def raise_status(context: grpc.ServicerContext, status: status_pb2.Status) -> None:
    """Ends the call with a rich status, as services do."""
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    context.abort(code, status.message)


def operation(
    state: "Metadata.State.ValueType" = Metadata.STATE_RUNNING, **fields: Any
) -> operations_pb2.Operation:
    """A live migration of web-1; `fields` go into its metadata."""
    values: dict[str, Any] = {
        "action": "LiveMigrateInstance",
        "target": f"{PROJECT}/instances/{WEB}",
        "migration": f"{PROJECT}/instances/{WEB}/migrations/{MIGRATION}",
        **fields,
    }
    made = operations_pb2.Operation(name=f"operations/{OPERATION}")
    made.metadata.Pack(Metadata(state=state, **values))
    return made


@dataclass
class State:
    """What the gateway knows. `refusals`: rpc name to the error that it answers with."""

    instances: dict[str, instance_pb2.Instance] = field(default_factory=dict)
    hosts: dict[str, host_pb2.Host] = field(default_factory=dict)
    images: dict[str, image_pb2.Image] = field(default_factory=dict)
    flavors: dict[str, flavor_pb2.Flavor] = field(default_factory=dict)
    networks: dict[str, network_pb2.Network] = field(default_factory=dict)
    quotas: dict[str, quota_pb2.Quota] = field(default_factory=dict)
    migrations: dict[str, migration_pb2.Migration] = field(default_factory=dict)
    operations: dict[str, operations_pb2.Operation] = field(default_factory=dict)
    report: reconcile_pb2.ReconcileReport = field(default_factory=reconcile_pb2.ReconcileReport)
    swept: host_pb2.SweepHostResponse = field(default_factory=host_pb2.SweepHostResponse)
    refusals: dict[str, RemudaError] = field(default_factory=dict)
    unavailable: dict[str, int] = field(default_factory=dict)
    """rpc name to how often it still answers UNAVAILABLE."""
    requests: list[tuple[str, Any]] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    watches: list[list[operations_pb2.Operation | grpc.StatusCode]] = field(default_factory=list)
    """One script per call of WatchOperation: operations, then perhaps how the stream breaks. A script that
    ends without either leaves the stream open until the client goes.
    """
    instance_watches: list[list[instance_pb2.WatchInstancesResponse | grpc.StatusCode]] = field(
        default_factory=list
    )
    check: moving_pb2.CheckMigrationResponse = field(default_factory=moving_pb2.CheckMigrationResponse)
    answers: list[migration_pb2.CommandResult | grpc.StatusCode] = field(default_factory=list)
    """To commands of ControlMigration, in order."""
    commands: list[migration_pb2.ControlMigrationRequest] = field(default_factory=list)
    uploaded: bytearray = field(default_factory=bytearray)
    upload_breaks_after: list[int] = field(default_factory=list)
    """Frames after which the next streams break."""
    disk: list[image_pb2.DownloadImageResponse | grpc.StatusCode] = field(default_factory=list)

    def asked(self, rpc: str) -> list[Any]:
        return [request for name, request in self.requests if name == rpc]


class Fake:
    """Every servicer in one: records each request, refuses where it is told to."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.closing = threading.Event()

    def _enter(self, rpc: str, request: Any, context: grpc.ServicerContext) -> None:
        self.state.requests.append((rpc, request))
        self.state.metadata.append(dict(context.invocation_metadata()))
        if self.state.unavailable.get(rpc, 0) > 0:
            self.state.unavailable[rpc] -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
        if rpc in self.state.refusals:
            raise_status(context, to_status(self.state.refusals[rpc], request_id="seen-in-the-logs"))

    def _get(self, found: dict[str, Any], name: str, context: grpc.ServicerContext) -> Any:
        for item in found.values():
            if name in (item.name, f"{item.name.rpartition('/')[0]}/{getattr(item, 'display_name', '')}"):
                return item
        raise_status(context, to_status(not_found(name)))
        raise AssertionError

    # Reads: the rpc's name says which dictionary.
    def __getattr__(self, rpc: str) -> Callable[[Any, grpc.ServicerContext], Any]:
        verb, noun = ("List", rpc[4:]) if rpc.startswith("List") else ("Get", f"{rpc[3:]}s")
        if not rpc.startswith(("Get", "List")) or noun.lower() not in State.__dataclass_fields__:
            raise AttributeError(rpc)

        def get(request: Any, context: grpc.ServicerContext) -> Any:
            self._enter(rpc, request, context)
            return self._get(getattr(self.state, noun.lower()), request.name, context)

        def list_(request: Any, context: grpc.ServicerContext) -> Any:
            self._enter(rpc, request, context)
            return self._page(noun, request)

        return list_ if verb == "List" else get

    def _page(self, noun: str, request: Any) -> Message:
        """Pages of two, so that every list in the tests needs the second one too."""
        kind: Any = {
            "Instances": instance_pb2.ListInstancesResponse,
            "Hosts": host_pb2.ListHostsResponse,
            "Images": image_pb2.ListImagesResponse,
            "Flavors": flavor_pb2.ListFlavorsResponse,
            "Networks": network_pb2.ListNetworksResponse,
            "Migrations": migration_pb2.ListMigrationsResponse,
            "Operations": operations_pb2.ListOperationsResponse,
        }[noun]
        everything = list(getattr(self.state, noun.lower()).values())
        start = int(request.page_token or 0)
        more = str(start + 2) if start + 2 < len(everything) else ""
        page: Message = kind(**{noun.lower(): everything[start : start + 2]}, next_page_token=more)
        return page

    def _verb(self, rpc: str, request: Any, context: grpc.ServicerContext) -> operations_pb2.Operation:
        self._enter(rpc, request, context)
        if request.validate_only:
            checked = operation(Metadata.STATE_DONE, action=rpc)
            checked.name, checked.done = "", True
            return checked
        return operation(Metadata.STATE_PENDING, action=rpc)

    def CreateInstance(self, request: Any, context: grpc.ServicerContext) -> operations_pb2.Operation:
        return self._verb("CreateInstance", request, context)

    def DeleteInstance(self, request: Any, context: grpc.ServicerContext) -> operations_pb2.Operation:
        return self._verb("DeleteInstance", request, context)

    def StartInstance(self, request: Any, context: grpc.ServicerContext) -> operations_pb2.Operation:
        return self._verb("StartInstance", request, context)

    def StopInstance(self, request: Any, context: grpc.ServicerContext) -> operations_pb2.Operation:
        return self._verb("StopInstance", request, context)

    def LiveMigrateInstance(self, request: Any, context: grpc.ServicerContext) -> operations_pb2.Operation:
        return self._verb("LiveMigrateInstance", request, context)

    def SnapshotInstance(self, request: Any, context: grpc.ServicerContext) -> operations_pb2.Operation:
        return self._verb("SnapshotInstance", request, context)

    def ReconcileInstance(self, request: Any, context: grpc.ServicerContext) -> operations_pb2.Operation:
        started = self._verb("ReconcileInstance", request, context)
        if request.validate_only:
            started.response.Pack(self.state.report)
        return started

    def UpdateInstance(self, request: Any, context: grpc.ServicerContext) -> instance_pb2.Instance:
        self._enter("UpdateInstance", request, context)
        return instance_pb2.Instance(name=request.instance.name, labels=request.instance.labels)

    def ListAllowedActions(self, request: Any, context: grpc.ServicerContext) -> Message:
        self._enter("ListAllowedActions", request, context)
        refused = RemudaError(Reason.STATE_FORBIDS_ACTION, "a RUNNING instance cannot be started")
        return instance_pb2.ListAllowedActionsResponse(
            actions=[
                instance_pb2.AllowedAction(action="StopInstance", allowed=True),
                instance_pb2.AllowedAction(action="StartInstance", refusal=to_status(refused)),
            ]
        )

    def ListInstanceEvents(self, request: Any, context: grpc.ServicerContext) -> Message:
        self._enter("ListInstanceEvents", request, context)
        answer = instance_pb2.ListInstanceEventsResponse()
        event = answer.events.add(
            sequence=1, type="SOURCE_PAUSED", host=f"hosts/{HOST1}", message="paused", severity=1
        )
        event.time.FromMilliseconds(1_700_000_000_041)
        return answer

    def GetConsoleOutput(self, request: Any, context: grpc.ServicerContext) -> Message:
        self._enter("GetConsoleOutput", request, context)
        return instance_pb2.GetConsoleOutputResponse(output=b"login: \xff\r\n", truncated=True)

    def WatchInstances(self, request: Any, context: grpc.ServicerContext) -> Iterator[Message]:
        self._enter("WatchInstances", request, context)
        yield from self._play(self.state.instance_watches, context)

    def WatchOperation(self, request: Any, context: grpc.ServicerContext) -> Iterator[Message]:
        self._enter("WatchOperation", request, context)
        for message in self._play(self.state.watches, context):
            yield operation_pb2.WatchOperationResponse(operation=message)

    def _play(self, scripts: Sequence[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        played = sum(name in ("WatchOperation", "WatchInstances") for name, _ in self.state.requests)
        ended = False
        for item in scripts[played - 1]:
            if isinstance(item, grpc.StatusCode):
                context.abort(item, "the script says so")
            yield item
            ended = getattr(item, "done", False)
        while not ended and context.is_active() and not self.closing.wait(0.02):
            pass

    def CheckMigration(self, request: Any, context: grpc.ServicerContext) -> Message:
        self._enter("CheckMigration", request, context)
        return self.state.check

    def ControlMigration(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Message]:
        """Each command gets the next of `answers`, under its id; a grpc.StatusCode breaks the stream."""
        self._enter("ControlMigration", next(requests), context)
        yield migration_pb2.ControlMigrationResponse(progress=migration_pb2.MigrationProgress(iteration=1))
        for request in requests:
            self.state.commands.append(request)
            answer = self.state.answers.pop(0)
            if isinstance(answer, grpc.StatusCode):
                context.abort(answer, "the script says so")
            answer.command_id = request.command_id
            yield migration_pb2.ControlMigrationResponse(result=answer)

    def CancelOperation(self, request: Any, context: grpc.ServicerContext) -> empty_pb2.Empty:
        self._enter("CancelOperation", request, context)
        return empty_pb2.Empty()

    def CreateHost(self, request: Any, context: grpc.ServicerContext) -> Message:
        self._enter("CreateHost", request, context)
        return host_pb2.CreateHostResponse(
            host=host_pb2.Host(name=f"hosts/{request.host_id}"), enrolment_token="once-only"
        )

    def CordonHost(self, request: Any, context: grpc.ServicerContext) -> host_pb2.Host:
        self._enter("CordonHost", request, context)
        cordoned = host_pb2.Host()
        cordoned.CopyFrom(self.state.hosts[request.name])
        cordoned.cordoned = True
        return cordoned

    def UncordonHost(self, request: Any, context: grpc.ServicerContext) -> host_pb2.Host:
        self._enter("UncordonHost", request, context)
        return self.state.hosts[request.name]

    def DeleteHost(self, request: Any, context: grpc.ServicerContext) -> empty_pb2.Empty:
        self._enter("DeleteHost", request, context)
        return empty_pb2.Empty()

    def SweepHost(self, request: Any, context: grpc.ServicerContext) -> Message:
        self._enter("SweepHost", request, context)
        return self.state.swept

    def ExplainPlacement(self, request: Any, context: grpc.ServicerContext) -> Message:
        self._enter("ExplainPlacement", request, context)
        verdicts = [
            operation_pb2.HostVerdict(host=f"hosts/{HOST2}", display_name="host2", eligible=True, score=1.5),
            operation_pb2.HostVerdict(
                host=f"hosts/{HOST1}", display_name="host1", filter="memory", reason="64 MiB free, 512 needed"
            ),
        ]
        return operation_pb2.PlacementExplanation(
            chosen_host=f"hosts/{HOST2}", hosts=verdicts, considered=2, rejections={"memory": 1}
        )

    def CreateFlavor(self, request: Any, context: grpc.ServicerContext) -> flavor_pb2.Flavor:
        self._enter("CreateFlavor", request, context)
        made: flavor_pb2.Flavor = request.flavor
        made.name = f"flavors/{request.flavor_id}"
        return made

    def DeleteFlavor(self, request: Any, context: grpc.ServicerContext) -> empty_pb2.Empty:
        self._enter("DeleteFlavor", request, context)
        return empty_pb2.Empty()

    def CreateNetwork(self, request: Any, context: grpc.ServicerContext) -> network_pb2.Network:
        self._enter("CreateNetwork", request, context)
        made: network_pb2.Network = request.network
        made.name = f"networks/{request.network_id}"
        return made

    def DeleteNetwork(self, request: Any, context: grpc.ServicerContext) -> empty_pb2.Empty:
        self._enter("DeleteNetwork", request, context)
        return empty_pb2.Empty()

    def CreateImage(self, request: Any, context: grpc.ServicerContext) -> image_pb2.Image:
        self._enter("CreateImage", request, context)
        made: image_pb2.Image = request.image
        made.uid = str(uuid.uuid4())
        made.name = f"{PROJECT}/images/{made.uid}"
        made.state = image_pb2.Image.STATE_UPLOADING
        self.state.images[made.name] = made
        return made

    def UpdateImage(self, request: Any, context: grpc.ServicerContext) -> image_pb2.Image:
        """The image with the fields of the mask changed; what was asked for is what `asked` shows."""
        self._enter("UpdateImage", request, context)
        found = self._get(self.state.images, request.image.name, context)
        changed = image_pb2.Image()
        changed.CopyFrom(found)
        for path in request.update_mask.paths:
            changed.ClearField(path)
            chosen = image_pb2.Image(**{path: getattr(request.image, path)})
            changed.MergeFrom(chosen)
        return changed

    def UpdateQuota(self, request: Any, context: grpc.ServicerContext) -> quota_pb2.Quota:
        self._enter("UpdateQuota", request, context)
        limits: quota_pb2.Quota = request.quota
        return limits

    def DeleteImage(self, request: Any, context: grpc.ServicerContext) -> empty_pb2.Empty:
        self._enter("DeleteImage", request, context)
        return empty_pb2.Empty()

    def GetUpload(self, request: Any, context: grpc.ServicerContext) -> image_pb2.Upload:
        self._enter("GetUpload", request, context)
        return image_pb2.Upload(name=request.name, committed_bytes=len(self.state.uploaded))

    def UploadImage(self, frames: Iterator[Any], context: grpc.ServicerContext) -> Message:
        limit = self.state.upload_breaks_after.pop(0) if self.state.upload_breaks_after else -1
        name = ""
        for count, frame in enumerate(frames):
            if count == limit:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the store restarts")
            name = name or frame.name
            assert frame.offset == len(self.state.uploaded)
            self.state.uploaded += frame.data
            if frame.finish:
                self._enter("UploadImage", frame, context)
        image = self.state.images[name]
        image.state = image_pb2.Image.STATE_ACTIVE
        return image_pb2.UploadImageResponse(image=image, committed_bytes=len(self.state.uploaded))

    def DownloadImage(self, request: Any, context: grpc.ServicerContext) -> Iterator[Message]:
        self._enter("DownloadImage", request, context)
        while self.state.disk:
            item = self.state.disk.pop(0)
            if isinstance(item, grpc.StatusCode):
                context.abort(item, "the script says so")
            yield item


def canned() -> State:
    state = State()
    for uid, name, host in ((HOST1, "host1", 1), (HOST2, "host2", 2)):
        state.hosts[f"hosts/{uid}"] = host_pb2.Host(
            name=f"hosts/{uid}",
            uid=uid,
            display_name=name,
            state=host_pb2.Host.STATE_UP,
            usage=host_pb2.HostUsage(instances=host),
        )
    for uid, name in ((WEB, "web-1"), (WORKER, "worker")):
        full = f"{PROJECT}/instances/{uid}"
        state.instances[full] = instance_pb2.Instance(
            name=full,
            uid=uid,
            display_name=name,
            etag="e1",
            host=f"hosts/{HOST1}",
            memory_mib=512,
            vcpus=1,
            state=instance_pb2.Instance.STATE_RUNNING,
            flavor="flavors/small",
            labels={"tier": "web"},
            network_interfaces=[instance_pb2.NetworkInterface(network="networks/lan", address="10.78.0.5")],
        )
    for name in ("large", "medium", "small"):
        state.flavors[name] = flavor_pb2.Flavor(name=f"flavors/{name}", vcpus=1, memory_mib=512)
    state.networks["lan"] = network_pb2.Network(
        name="networks/lan", cidr="10.78.0.0/24", physical_network="physnet"
    )
    state.quotas["demo"] = quota_pb2.Quota(
        name=f"{PROJECT}/quota",
        image_virtual_bytes=10 << 30,
        usage=quota_pb2.Usage(images=2, image_virtual_bytes=3 << 30, image_stored_bytes=1 << 30),
    )
    image = f"{PROJECT}/images/{WEB}"
    state.images[image] = image_pb2.Image(
        name=image, uid=WEB, display_name="debian", virtual_bytes=4096, state=image_pb2.Image.STATE_ACTIVE
    )
    moved = f"{PROJECT}/instances/{WEB}/migrations/{MIGRATION}"
    state.migrations[moved] = migration_pb2.Migration(
        name=moved,
        source_host=f"hosts/{HOST1}",
        target_host=f"hosts/{HOST2}",
        downtime_ms=41,
        memory_bytes=600 << 20,
        state=migration_pb2.Migration.STATE_DONE,
        kind=migration_pb2.Migration.KIND_LIVE_SHARED,
    )
    state.operations[OPERATION] = operation()
    return state


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@dataclass
class Gateway:
    state: State
    endpoint: str
    run: Callable[..., Outcome]


@pytest.fixture
def gateway(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Gateway]:
    """A served State, and the command pointed at it."""
    fake: Any = Fake(canned())
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    instance_pb2_grpc.add_InstanceServiceServicer_to_server(fake, server)
    host_pb2_grpc.add_HostServiceServicer_to_server(fake, server)
    flavor_pb2_grpc.add_FlavorServiceServicer_to_server(fake, server)
    network_pb2_grpc.add_NetworkServiceServicer_to_server(fake, server)
    migration_pb2_grpc.add_MigrationServiceServicer_to_server(fake, server)
    operation_pb2_grpc.add_OperationServiceServicer_to_server(fake, server)
    image_pb2_grpc.add_ImageServiceServicer_to_server(fake, server)
    quota_pb2_grpc.add_QuotaServiceServicer_to_server(fake, server)
    fake.WaitOperation = fake.DeleteOperation = fake.CancelOperation
    operations_pb2_grpc.add_OperationsServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    for name in ("TOKEN", "CACERT", "CERT", "KEY", "SERVER_NAME", "CONTEXT", "CONFIG"):
        monkeypatch.delenv(f"REMUDA_{name}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("REMUDA_ENDPOINT", endpoint)
    monkeypatch.setenv("REMUDA_PROJECT", "demo")

    def command(*arguments: str) -> Outcome:
        capfd.readouterr()
        code = run(arguments)
        captured = capfd.readouterr()
        return Outcome(code=code, out=captured.out, err=captured.err)

    yield Gateway(state=fake.state, endpoint=endpoint, run=command)
    fake.closing.set()
    server.stop(grace=None).wait(5)
