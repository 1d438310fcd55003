"""Who gets in: certificates, tokens, and what a server without TLS believes."""

import hashlib
from typing import Any

import grpc
import pytest
from remuda.compute.v1 import instance_pb2, instance_pb2_grpc, moving_pb2
from remuda.image.v1 import image_pb2
from remuda_core.auth.caller import Kind
from remuda_core.auth.identity import Token, Tokens
from remuda_core.errors import Reason, RemudaError
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.server import ServiceServer
from remuda_core.rpc.status import from_rpc_error
from remuda_core.rpc.tls import Tls
from remuda_core.telemetry.metrics import Metrics
from remuda_lab.pki import Identity

GET = instance_pb2.GetInstanceRequest(name="projects/demo/instances/web")
TOKENS = Tokens([Token(sha256=hashlib.sha256(b"s3cret").hexdigest(), principal="bob", projects=("demo",))])


async def outcome(channel: grpc.aio.Channel, token: str = "") -> RemudaError | str:
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    try:
        answer = await instance_pb2_grpc.InstanceServiceStub(channel).GetInstance(GET, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    return answer.name


async def reason(channel: grpc.aio.Channel, token: str = "") -> Reason:
    error = await outcome(channel, token)
    assert isinstance(error, RemudaError)
    return error.reason


async def test_a_member_of_another_project_is_refused(served: Any) -> None:
    async with served.channel(served.pki.user("eve", "project:other")) as channel:
        assert await reason(channel) is Reason.PERMISSION_DENIED
    assert served.code_count("remuda.compute.v1.InstanceService/GetInstance", "PERMISSION_DENIED") == 1


async def test_an_admin_may_see_every_project(served: Any) -> None:
    async with served.channel(served.pki.user("root", "admin")) as channel:
        assert await outcome(channel) == GET.name


async def test_hosts_and_services_may_not_call_what_is_for_users(served: Any) -> None:
    for tls in (served.pki.host(), served.pki.service("scheduler")):
        async with served.channel(tls) as channel:
            assert await reason(channel) is Reason.PERMISSION_DENIED


async def test_a_server_may_refuse_a_kind_of_caller_altogether(serve: Any, pki: Any) -> None:
    kinds = {Kind.SERVICE, Kind.HOST}
    async with serve(kinds=kinds) as served, served.channel(pki.user("root", "admin")) as channel:
        assert await reason(channel) is Reason.PERMISSION_DENIED


async def test_a_certificate_without_mesh_identity_is_nobody(served: Any) -> None:
    hypervisor = served.pki.tls(Identity(common_name="qemu", path=None, dns=("h1",)))
    async with served.channel(hypervisor) as channel:
        assert await reason(channel) is Reason.UNAUTHENTICATED


async def test_a_client_without_certificate_does_not_get_a_connection(served: Any) -> None:
    async with served.channel(Tls(ca=served.pki.ca)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await instance_pb2_grpc.InstanceServiceStub(channel).GetInstance(GET, timeout=3)
    assert caught.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert not served.seen.callers


async def test_a_token_is_enough_on_the_port_that_asks_for_no_certificate(serve: Any, pki: Any) -> None:
    async with serve(token_listen="127.0.0.1:0", tokens=TOKENS) as served:
        async with open_channel(f"127.0.0.1:{served.server.token_port}", Tls(ca=pki.ca)) as channel:
            assert await outcome(channel, "s3cret") == GET.name
            assert await reason(channel, "guessed") is Reason.UNAUTHENTICATED
            assert await reason(channel) is Reason.UNAUTHENTICATED
        assert served.seen.callers == ["user/bob"]


async def test_a_token_goes_before_the_certificate(serve: Any, pki: Any) -> None:
    async with serve(tokens=TOKENS) as served, served.channel(pki.user("eve")) as channel:
        assert await outcome(channel, "s3cret") == GET.name
    assert served.seen.callers == ["user/bob"]


async def test_without_tls_the_channel_says_who_calls(serve: Any) -> None:
    async with serve(tls=None) as served:
        async with served.channel(None, identity="user/alice;project:demo") as channel:
            assert await outcome(channel) == GET.name
        async with served.channel(None) as channel:
            assert await reason(channel) is Reason.UNAUTHENTICATED
        async with served.channel(None, identity="robot/alice") as channel:
            assert await reason(channel) is Reason.UNAUTHENTICATED
    assert served.seen.callers == ["user/alice"]


async def test_with_tls_nobody_names_himself(served: Any) -> None:
    # The user agent of the insecure mode, on a connection whose certificate says otherwise.
    credentials = grpc.ssl_channel_credentials(served.pki.ca, (eve := served.pki.user("eve")).key, eve.cert)
    options = [("grpc.primary_user_agent", "remuda-identity=user/root;admin")]
    target = f"127.0.0.1:{served.server.port}"
    async with grpc.aio.secure_channel(target, credentials, options=options) as channel:
        assert await reason(channel) is Reason.PERMISSION_DENIED


async def test_plain_text_never_leaves_the_machine() -> None:
    with pytest.raises(ValueError, match="without TLS"):
        ServiceServer(listen="0.0.0.0:0", services=[], tls=None, metrics=Metrics())
    with pytest.raises(ValueError, match="without TLS"):
        open_channel("192.0.2.1:7443", None)


async def test_only_admins_choose_the_target_of_a_migration(served: Any) -> None:
    request = moving_pb2.LiveMigrateInstanceRequest(name=GET.name, target_host="hosts/b")
    async with served.channel(served.pki.user("alice", "project:demo")) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await instance_pb2_grpc.InstanceServiceStub(channel).LiveMigrateInstance(request)
    error = from_rpc_error(caught.value)
    assert error.reason is Reason.PERMISSION_DENIED
    assert error.metadata["field"] == "target_host"


async def test_an_rpc_without_a_rule_is_refused(serve: Any, pki: Any) -> None:
    async with serve(policy={}) as served, served.channel(pki.user("root", "admin")) as channel:
        assert await reason(channel) is Reason.PERMISSION_DENIED
        call = channel.unary_unary(
            "/remuda.image.v1.ImageService/GetImage",
            request_serializer=image_pb2.GetImageRequest.SerializeToString,
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(image_pb2.GetImageRequest())
        assert from_rpc_error(caught.value).reason is Reason.PERMISSION_DENIED
