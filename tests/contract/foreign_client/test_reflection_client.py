"""A client that was built without our .proto files: everything it knows, the server told it by reflection.

Nothing here imports a generated module of ours; the descriptors live in a pool of their own.
"""

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha import reflection_pb2
from remuda_core.testing.waiting import wait_for_sync
from remuda_lab.pki import KeyPair

from tests.contract.foreign_client.conftest import GatewayProcess

REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
INSTANCES = "remuda.compute.v1.InstanceService"
OPERATIONS = "google.longrunning.Operations"
IMAGES = "remuda.image.v1.ImageService"
NET = {"physical_network": "physnet", "cidr": "10.78.0.0/24"}


class ForeignClient:
    """Calls any rpc by name, with requests and answers as JSON objects."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._pool = descriptor_pool.DescriptorPool()
        self._files: set[str] = set()

    async def services(self) -> set[str]:
        answer = await self._ask(list_services="")
        return {service.name for service in answer.list_services_response.service}

    async def learn(self, *symbols: str) -> None:
        """Fetch the files that declare these symbols, and all they depend on."""
        for symbol in symbols:
            answer = await self._ask(file_containing_symbol=symbol)
            self._add([bytes(raw) for raw in answer.file_descriptor_response.file_descriptor_proto])

    async def call(self, service: str, method: str, request: dict[str, Any]) -> dict[str, Any]:
        rpc = self._pool.FindServiceByName(service).methods_by_name[method]
        stub: Any = self._channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=self._class(rpc.output_type.full_name).FromString,
        )
        return self._json(await stub(self._message(rpc.input_type.full_name, request), timeout=20))

    async def stream(
        self, service: str, method: str, request: dict[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        rpc = self._pool.FindServiceByName(service).methods_by_name[method]
        stub: Any = self._channel.unary_stream(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=self._class(rpc.output_type.full_name).FromString,
        )
        async for message in stub(self._message(rpc.input_type.full_name, request), timeout=20):
            yield self._json(message)

    async def refusal(self, service: str, method: str, request: dict[str, Any]) -> dict[str, Any]:
        """The ErrorInfo of the error that the call ends with, read through reflected types."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(service, method, request)
        await self.learn("google.rpc.Status", "google.rpc.ErrorInfo", "google.rpc.BadRequest")
        await self.learn("google.rpc.ResourceInfo", "google.rpc.RequestInfo")
        await self.learn("google.rpc.RetryInfo", "google.rpc.PreconditionFailure")
        trailers = dict(caught.value.trailing_metadata() or ())
        status = self._class("google.rpc.Status").FromString(trailers["grpc-status-details-bin"])
        details = self._json(status)["details"]
        info: dict[str, Any]
        (info,) = [one for one in details if one["@type"].endswith("google.rpc.ErrorInfo")]
        assert info["domain"] == "remuda"
        return info

    async def _ask(self, **fields: Any) -> Any:
        stub: Any = self._channel.stream_stream(
            REFLECTION,
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )

        async def requests() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            yield reflection_pb2.ServerReflectionRequest(**fields)

        async for answer in stub(requests(), timeout=20):
            assert not answer.HasField("error_response"), answer.error_response
            return answer
        raise AssertionError("reflection did not answer")

    def _add(self, files: Iterable[bytes]) -> None:
        parsed = {p.name: p for p in map(descriptor_pb2.FileDescriptorProto.FromString, files)}

        def add(name: str) -> None:
            if name in self._files or name not in parsed:
                return
            for dependency in parsed[name].dependency:
                add(dependency)
            self._files.add(name)
            self._pool.Add(parsed[name])

        for name in parsed:
            add(name)

    def _class(self, full_name: str) -> Any:
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(full_name))

    def _message(self, full_name: str, value: dict[str, Any]) -> Any:
        return json_format.ParseDict(value, self._class(full_name)(), descriptor_pool=self._pool)

    def _json(self, message: Any) -> dict[str, Any]:
        found: dict[str, Any] = json_format.MessageToDict(
            message, preserving_proto_field_name=True, descriptor_pool=self._pool
        )
        return found


async def test_a_session_is_had_with_nothing_but_reflection_and_a_certificate(
    gateway: GatewayProcess, admin: KeyPair
) -> None:
    async with gateway.channel(admin) as channel:
        client = ForeignClient(channel)
        services = await client.services()
        assert {INSTANCES, OPERATIONS, IMAGES, "grpc.health.v1.Health"} <= services
        await client.learn(*sorted(service for service in services if "reflection" not in service))
        flavor = await client.call(
            "remuda.compute.v1.FlavorService",
            "CreateFlavor",
            {"flavor_id": "small", "flavor": {"vcpus": 1, "memory_mib": 64}},
        )
        assert flavor["name"] == "flavors/small"
        network = await client.call(
            "remuda.compute.v1.NetworkService", "CreateNetwork", {"network_id": "net", "network": NET}
        )
        assert network["allocation_start"] == "10.78.0.1"
        image = await client.call(
            IMAGES,
            "CreateImage",
            {
                "parent": "projects/demo",
                "image": {"display_name": "disk", "format": "FORMAT_QCOW2", "file_bytes": "10"},
            },
        )
        assert image["state"] == "STATE_UPLOADING"
        request_id = str(uuid.uuid4())
        host = {"host_id": str(uuid.uuid4()), "host": {"display_name": "a"}, "request_id": request_id}
        made = await client.call("remuda.compute.v1.HostService", "CreateHost", host)
        assert made["enrolment_token"]
        answer = await client.call(OPERATIONS, "ListOperations", {})
        assert answer == {}
        info = await client.refusal(
            INSTANCES,
            "CreateInstance",
            {
                "parent": "projects/demo",
                "instance": {"display_name": "web", "flavor": flavor["name"], "image": image["name"]},
            },
        )
        assert info["reason"] == "IMAGE_NOT_ACTIVE"
        first = await anext(client.stream(INSTANCES, "WatchInstances", {"parent": "projects/demo"}))
        assert first["kind"] == "KIND_SYNCED"


async def test_a_malformed_request_is_told_field_by_field(gateway: GatewayProcess, admin: KeyPair) -> None:
    async with gateway.channel(admin) as channel:
        client = ForeignClient(channel)
        await client.learn("remuda.compute.v1.FlavorService")
        request = {"flavor_id": "UPPER", "flavor": {"vcpus": 0, "memory_mib": 64}}
        info = await client.refusal("remuda.compute.v1.FlavorService", "CreateFlavor", request)
        assert info["reason"] == "INVALID_ARGUMENT"


async def test_a_certificate_of_nobody_and_a_user_of_no_project_are_refused(
    gateway: GatewayProcess, stranger: KeyPair
) -> None:
    async with gateway.channel(stranger) as channel:
        client = ForeignClient(channel)
        await client.learn("remuda.compute.v1.FlavorService")
        info = await client.refusal("remuda.compute.v1.FlavorService", "ListFlavors", {})
        assert info["reason"] == "UNAUTHENTICATED"


async def test_without_a_certificate_there_is_no_connection(gateway: GatewayProcess) -> None:
    async with gateway.channel(None) as channel:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(channel.channel_ready(), 1)


async def test_buf_curl_calls_it_too(gateway: GatewayProcess, admin: KeyPair) -> None:
    command = [
        str(Path(sys.executable).with_name("buf")), "curl", "--protocol", "grpc",
        "--cacert", str(gateway.authority.certificate),
        "--cert", str(admin.certificate), "--key", str(admin.key),
        "-d", '{"network_id": "net", "network": {"physical_network": "p", "cidr": "10.0.0.0/24"}}',
        f"https://{gateway.address}/remuda.compute.v1.NetworkService/CreateNetwork",
    ]  # fmt: skip
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "networks/net"


async def test_the_gateway_drains_on_sigterm_and_ends_its_watches(
    gateway: GatewayProcess, admin: KeyPair
) -> None:
    async with gateway.channel(admin) as channel:
        client = ForeignClient(channel)
        await client.learn(INSTANCES)
        watch = client.stream(INSTANCES, "WatchInstances", {"parent": "projects/demo"})
        assert (await anext(watch))["kind"] == "KIND_SYNCED"
        ending = asyncio.create_task(asyncio.to_thread(gateway.terminate))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(watch)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await ending == 0, gateway.log()


def test_a_configuration_that_cannot_be_used_is_one_line_and_status_2(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("remuda-api")), "--listen=127.0.0.1:0"]
    for extra, words in (
        (["--tokens_file=/nowhere/tokens.toml"], "tokens file"),
        (["--colour=red"], "colour"),
        (["--listen=0.0.0.0:0"], "loopback"),
    ):
        done = subprocess.run(
            [*command, *extra], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
        )
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_a_gateway_that_waits_for_etcd_ends_on_the_first_sigterm(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("remuda-api")), "--listen=127.0.0.1:0"]
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen([*command, '--etcd.endpoints=["127.0.0.1:1"]'], stderr=stderr)
    try:
        wait_for_sync(lambda: "cache of" in log.read_text(), timeout=30, last_status=log.read_text)
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
