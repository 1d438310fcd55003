"""Every kind of call through the whole chain, over mutual TLS."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2
from remuda.compute.v1 import instance_pb2, instance_pb2_grpc
from remuda.image.v1 import image_pb2, image_pb2_grpc
from remuda.scheduler.v1 import registry_pb2, registry_pb2_grpc
from remuda_core.errors import Reason, RemudaError
from remuda_core.etcd.errors import PermissionDenied
from remuda_core.rpc import context
from remuda_core.rpc.status import from_rpc_error, request_id_of, rpc_error_status
from remuda_core.rpc.tls import channel_credentials
from remuda_core.telemetry import logs
from remuda_core.testing.waiting import wait_for

GET = instance_pb2.GetInstanceRequest(name="projects/demo/instances/web")
WATCH = instance_pb2.WatchInstancesRequest(parent="projects/demo")
HELD = "remuda.compute.v1.InstanceService/GetInstance"


async def refused(call: Any) -> RemudaError:
    """The error that a call ends with; it must be a rich one, with exactly one ErrorInfo."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_error_status(caught.value)
    infos = [detail for detail in status.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    assert len(infos) == 1
    assert request_id_of(status)
    return from_rpc_error(caught.value)


async def test_a_unary_call_passes_with_caller_request_id_and_deadline(served: Any) -> None:
    async with served.channel(served.pki.user("alice", "project:demo")) as channel:
        stub = instance_pb2_grpc.InstanceServiceStub(channel)
        answer = await stub.GetInstance(GET, timeout=5, metadata=((context.REQUEST_ID_KEY, "id-1"),))
    assert answer.name == GET.name
    assert served.seen.callers == ["user/alice"]
    assert served.seen.request_ids == ["id-1"]
    assert 3 < served.seen.remaining[0] <= 5
    assert served.code_count(HELD, "OK") == 1


async def test_a_call_without_request_id_and_deadline_gets_both(served: Any) -> None:
    async with served.channel(served.pki.user("alice", "project:demo")) as channel:
        await instance_pb2_grpc.InstanceServiceStub(channel).GetInstance(GET)
    assert len(served.seen.request_ids[0]) == 36
    assert 50 < served.seen.remaining[0] <= 60


async def test_a_server_stream_passes_and_ends_with_the_handlers_error(served: Any) -> None:
    served.seen.raises = RemudaError(Reason.PAGE_TOKEN_EXPIRED, "list again", retry_after_seconds=1.5)
    async with served.channel(served.pki.user("alice", "project:demo")) as channel:
        call = instance_pb2_grpc.InstanceServiceStub(channel).WatchInstances(WATCH)
        assert [(await call.read()).revision for _ in range(2)] == [1, 2]
        error = await refused(call.read())
    assert error.reason is Reason.PAGE_TOKEN_EXPIRED
    assert error.retry_after_seconds == 1.5


async def frames(*names: str) -> AsyncIterator[image_pb2.UploadImageRequest]:
    for offset, name in enumerate(names):
        yield image_pb2.UploadImageRequest(name=name, offset=offset, data=b"x")


async def test_a_client_stream_passes_and_only_its_first_message_names_the_project(served: Any) -> None:
    async with served.channel(served.pki.user("alice", "project:demo")) as channel:
        stub = image_pb2_grpc.ImageServiceStub(channel)
        answer = await stub.UploadImage(frames("projects/demo/images/a", "", ""))
    assert answer.committed_bytes == 3


async def test_a_client_stream_into_another_project_is_refused_at_its_first_message(served: Any) -> None:
    async with served.channel(served.pki.user("alice", "project:demo")) as channel:
        stub = image_pb2_grpc.ImageServiceStub(channel)
        error = await refused(stub.UploadImage(frames("projects/other/images/a")))
    assert error.reason is Reason.PERMISSION_DENIED
    assert not served.seen.callers


async def test_every_message_of_a_stream_is_validated(served: Any) -> None:
    async def requests() -> AsyncIterator[registry_pb2.AttachRequest]:
        yield registry_pb2.AttachRequest(heartbeat=registry_pb2.Heartbeat(seq=7))
        yield registry_pb2.AttachRequest()

    async with served.channel(served.pki.host()) as channel:
        call = registry_pb2_grpc.HostRegistryServiceStub(channel).Attach(requests())
        first = await call.read()
        assert first.ack.seq == 7
        error = await refused(call.read())
    assert error.reason is Reason.INVALID_ARGUMENT
    assert served.seen.callers == ["host/6f2a1c5e-6e0e-4a51-9d0e-0d6f6b1c1a01"]


async def test_a_malformed_request_names_each_field(served: Any) -> None:
    request = instance_pb2.CreateInstanceRequest(
        parent="projects/demo",
        instance=instance_pb2.Instance(
            display_name="No Such Label",
            flavor="flavors/small",
            image="projects/demo/images/a",
            network_interfaces=[instance_pb2.NetworkInterface(network="lan")],
        ),
    )
    async with served.channel(served.pki.user("alice", "project:demo")) as channel:
        error = await refused(instance_pb2_grpc.InstanceServiceStub(channel).CreateInstance(request))
    assert error.reason is Reason.INVALID_ARGUMENT
    assert [violation.subject for violation in error.violations] == [
        "instance.display_name",
        "instance.network_interfaces[0].network",
    ]
    assert not served.seen.callers


async def test_a_missing_resource_is_named(served: Any) -> None:
    async with served.channel(served.pki.user("alice", "project:demo")) as channel:
        request = instance_pb2.GetInstanceRequest(name="projects/demo/instances/absent")
        error = await refused(instance_pb2_grpc.InstanceServiceStub(channel).GetInstance(request))
    assert error.reason is Reason.INSTANCE_NOT_FOUND
    assert error.resource == request.name
    assert served.code_count(HELD, "NOT_FOUND") == 1


async def test_details_are_cut_to_what_any_grpc_client_accepts(served: Any) -> None:
    request = instance_pb2.CreateInstanceRequest(
        parent="projects/demo",
        instance=instance_pb2.Instance(
            display_name="web", flavor="flavors/small", image="projects/demo/images/a"
        ),
    )
    # Without our options: the limit of 8 KiB is gRPC's own.
    credentials = channel_credentials(served.pki.user("alice", "project:demo"))
    async with grpc.aio.secure_channel(f"127.0.0.1:{served.server.port}", credentials) as channel:
        error = await refused(instance_pb2_grpc.InstanceServiceStub(channel).CreateInstance(request))
    assert error.reason is Reason.NO_HOST_FITS
    assert error.metadata["filter"] == "x" * 509 + "..."


async def test_a_fault_shows_its_request_id_and_none_of_its_words(served: Any) -> None:
    served.seen.raises = KeyError("secret")
    async with served.channel(served.pki.user("alice", "project:demo")) as channel:
        call = instance_pb2_grpc.InstanceServiceStub(channel).GetInstance(
            GET, metadata=((context.REQUEST_ID_KEY, "id-9"),)
        )
        error = await refused(call)
    assert error.reason is Reason.INTERNAL
    assert "id-9" in error.message
    assert "secret" not in error.message


async def test_a_handler_that_ends_as_cancelled_although_nobody_cancelled_it_is_at_fault(served: Any) -> None:
    served.seen.raises = asyncio.CancelledError()
    async with served.channel(served.pki.user("alice", "project:demo")) as channel:
        error = await refused(instance_pb2_grpc.InstanceServiceStub(channel).GetInstance(GET))
    assert error.reason is Reason.INTERNAL
    assert served.code_count(HELD, "INTERNAL") == 1


async def test_a_call_that_its_client_cancels_is_no_fault(served: Any) -> None:
    request = instance_pb2.GetInstanceRequest(name="projects/demo/instances/slow")
    async with served.channel(served.pki.user("alice", "project:demo")) as channel:
        call = instance_pb2_grpc.InstanceServiceStub(channel).GetInstance(request)
        await served.seen.started.wait()
        call.cancel()
        await wait_for(lambda: served.code_count(HELD, "CANCELLED"), timeout=60)
    assert served.code_count(HELD, "INTERNAL") is None


async def test_a_right_that_etcd_denies_this_service_is_a_fault_and_is_not_repeated(served: Any) -> None:
    served.seen.raises = PermissionDenied("etcdserver: permission denied")
    async with served.channel(served.pki.user("alice", "project:demo")) as channel:
        error = await refused(instance_pb2_grpc.InstanceServiceStub(channel).GetInstance(GET))
    assert error.reason is Reason.INTERNAL
    assert "etcdserver" not in error.message
    assert len(served.seen.callers) == 1


async def test_errors_of_etcd_and_lost_time_become_reasons(served: Any, trouble: Exception) -> None:
    served.seen.raises = trouble
    async with served.channel(served.pki.user("alice", "project:demo")) as channel:
        # Reads are repeated by the channel while the answer is UNAVAILABLE; the last one counts.
        error = await refused(instance_pb2_grpc.InstanceServiceStub(channel).GetInstance(GET))
    wanted = {
        "Unavailable": Reason.STORE_UNAVAILABLE,
        "OutcomeUnknown": Reason.OUTCOME_UNKNOWN,
        "TimeoutError": Reason.DEADLINE_EXCEEDED,
    }
    assert error.reason is wanted[type(trouble).__name__]
    assert len(served.seen.callers) == (4 if error.code is grpc.StatusCode.UNAVAILABLE else 1)


async def test_a_handlers_own_abort_is_passed_on(served: Any) -> None:
    request = image_pb2.DeleteImageRequest(name="projects/demo/images/a")
    async with served.channel(served.pki.user("alice", "project:demo")) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="in its own words") as caught:
            await image_pb2_grpc.ImageServiceStub(channel).DeleteImage(request)
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert served.code_count("remuda.image.v1.ImageService/DeleteImage", "ABORTED") == 1


async def test_a_refusal_is_logged_with_service_request_id_and_principal(serve: Any, pki: Any) -> None:
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    try:
        logs.configure(service="api", stream=stream)
        async with serve() as served, served.channel(pki.user("eve", "project:other")) as channel:
            stub = instance_pb2_grpc.InstanceServiceStub(channel)
            for number in (1, 2):
                await refused(stub.GetInstance(GET, metadata=((context.REQUEST_ID_KEY, f"id-{number}"),)))
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    shown = [
        (line["service"], line["request_id"], line["principal"], line["reason"])
        for line in lines
        if line["event"] == "rpc refused"
    ]
    assert shown == [("api", f"id-{number}", "user/eve", "PERMISSION_DENIED") for number in (1, 2)]


async def test_an_unknown_rpc_is_unimplemented(served: Any) -> None:
    async with served.channel(served.pki.user("alice", "admin")) as channel:
        call = channel.unary_unary("/remuda.compute.v1.InstanceService/Fly")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_call_past_its_deadline_ends_and_frees_the_handler(served: Any) -> None:
    request = instance_pb2.GetInstanceRequest(name="projects/demo/instances/slow")
    async with served.channel(served.pki.user("alice", "project:demo")) as channel:
        stub = instance_pb2_grpc.InstanceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetInstance(request, timeout=0.3)
    assert from_rpc_error(caught.value).reason is Reason.DEADLINE_EXCEEDED


async def test_a_server_bounds_calls_whose_client_set_no_deadline(serve: Any) -> None:
    request = instance_pb2.GetInstanceRequest(name="projects/demo/instances/slow")
    async with (
        serve(default_deadline_seconds=0.2) as served,
        served.channel(served.pki.user("alice", "project:demo")) as channel,
    ):
        error = await refused(instance_pb2_grpc.InstanceServiceStub(channel).GetInstance(request))
    assert error.reason is Reason.DEADLINE_EXCEEDED
    assert served.code_count(HELD, "DEADLINE_EXCEEDED") == 1
