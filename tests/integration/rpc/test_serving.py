"""Health, reflection, drain, signals."""

import asyncio
import os
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from remuda.compute.v1 import instance_pb2, instance_pb2_grpc
from remuda_core.errors import Reason
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.server import REFLECTION_V1, ServiceServer
from remuda_core.rpc.status import from_rpc_error
from remuda_core.telemetry.metrics import Metrics

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
INSTANCES = "remuda.compute.v1.InstanceService"


async def test_health_needs_no_rights_and_knows_each_service(served: Any) -> None:
    async with served.channel(served.pki.user("nobody")) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", INSTANCES):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == SERVING
        await served.server.set_serving(INSTANCES, serving=False)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=INSTANCES))
        assert answer.status == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("service", ["grpc.reflection.v1alpha.ServerReflection", REFLECTION_V1])
async def test_reflection_lists_the_services_in_both_versions(served: Any, service: str) -> None:
    async with served.channel(served.pki.user("nobody")) as channel:
        ask = channel.stream_stream(
            f"/{service}/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        call = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="*")]))
        answer = await call.read()
    names = {one.name for one in answer.list_services_response.service}
    assert {INSTANCES, "remuda.image.v1.ImageService", REFLECTION_V1, "grpc.health.v1.Health"} <= names


async def test_a_drain_ends_endless_streams_and_lets_the_others_finish(serve: Any, pki: Any) -> None:
    alice = pki.user("alice", "project:demo")
    async with serve() as served, served.channel(alice) as channel:
        stub = instance_pb2_grpc.InstanceServiceStub(channel)
        watch = stub.WatchInstances(instance_pb2.WatchInstancesRequest(parent="projects/demo"))
        await watch.read()
        served.seen.started.clear()
        slow = stub.GetInstance(instance_pb2.GetInstanceRequest(name="projects/demo/instances/slow"))
        await served.seen.started.wait()
        stopping = asyncio.create_task(served.server.stop())
        await watch.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watch.read()
        error = from_rpc_error(caught.value)
        assert error.reason is Reason.SHUTTING_DOWN
        assert error.retry_after_seconds == 0.5
        assert served.seen.cancelled.is_set()
        assert served.server.draining.is_set()
        assert not stopping.done()
        served.seen.release.set()
        assert (await slow).name.endswith("/slow")
        await asyncio.wait_for(stopping, 60)


async def test_what_does_not_finish_in_time_is_cancelled(serve: Any, pki: Any) -> None:
    alice = pki.user("alice", "project:demo")
    async with serve(drain_seconds=0.2) as served, served.channel(alice) as channel:
        slow = instance_pb2_grpc.InstanceServiceStub(channel).GetInstance(
            instance_pb2.GetInstanceRequest(name="projects/demo/instances/slow")
        )
        await served.seen.started.wait()
        await asyncio.wait_for(served.server.stop(), 60)
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await slow
        assert served.code_count(f"{INSTANCES}/GetInstance", "CANCELLED") == 1


async def test_a_port_that_is_taken_is_said_so(served: Any) -> None:
    second = ServiceServer(
        listen=f"127.0.0.1:{served.server.port}",
        services=[],
        tls=served.pki.service("api"),
        metrics=Metrics(),
    )
    with pytest.raises(OSError, match="cannot listen"):
        await second.__aenter__()


async def test_a_server_on_a_unix_socket_needs_no_port(serve: Any, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s.sock"
    async with (
        serve(tls=None, listen=address) as served,
        open_channel(address, None, insecure_identity="user/a;admin") as channel,
    ):
        request = instance_pb2.GetInstanceRequest(name="projects/demo/instances/web")
        assert (await instance_pb2_grpc.InstanceServiceStub(channel).GetInstance(request)).name
    assert served.seen.callers == ["user/a"]


async def test_sigterm_drains_and_ends_the_process_with_success() -> None:
    program = textwrap.dedent("""
        import asyncio
        from remuda_core.rpc.server import ServiceServer, run_service
        from remuda_core.telemetry import logs
        from remuda_core.telemetry.metrics import Metrics

        async def main(stop: asyncio.Event) -> None:
            logs.configure()
            settings = {"listen": "127.0.0.1:0", "services": [], "tls": None, "metrics": Metrics()}
            async with ServiceServer(**settings) as server:
                print(server.port, flush=True)
                await stop.wait()
            print("drained", flush=True)

        run_service(main)
    """)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        port = int(await asyncio.wait_for(process.stdout.readline(), 60))
        async with open_channel(f"127.0.0.1:{port}", None) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)).status == SERVING
            os.kill(process.pid, signal.SIGTERM)
            rest = await asyncio.wait_for(process.stdout.read(), 60)
        assert b"drained" in rest
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
