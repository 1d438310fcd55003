"""No rpc is served without a decision on who may call it, a line in the docs, and a test that calls it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from google.longrunning import operations_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_health.v1 import health_pb2
from remuda_core.auth.policy import POLICY

# Services of other people's protos that ours serve to callers.
BORROWED = (operations_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR)


@pytest.fixture(scope="module")
def own_rpcs(image: FileDescriptorSet) -> list[str]:
    """The rpcs of our own services as gRPC names them, /package.Service/Method."""
    return [
        f"/{file.package}.{service.name}/{method.name}"
        for file in image.file
        if file.package.startswith("remuda.")
        for service in file.service
        for method in service.method
    ]


@pytest.fixture(scope="module")
def borrowed_rpcs() -> list[str]:
    return [
        f"/{service.full_name}/{method.name}"
        for file in BORROWED
        for service in file.services_by_name.values()
        for method in service.methods
    ]


def test_every_rpc_has_a_row_in_the_authorisation_policy(
    own_rpcs: list[str], borrowed_rpcs: list[str]
) -> None:
    assert own_rpcs, "no services in the .proto files yet"
    assert not sorted({*own_rpcs, *borrowed_rpcs} - set(POLICY))


def test_every_row_of_the_policy_is_an_rpc_that_exists(own_rpcs: list[str], borrowed_rpcs: list[str]) -> None:
    infrastructure = {row for row in POLICY if row.startswith("/grpc.")}
    assert not sorted(set(POLICY) - infrastructure - {*own_rpcs, *borrowed_rpcs})


def test_every_rpc_is_in_the_api_document(own_rpcs: list[str], read: Callable[[str], str]) -> None:
    document = read("docs/api.md")
    missing = [rpc for rpc in own_rpcs if f"`{rpc.rpartition('/')[2]}`" not in document]
    assert not missing, "run `make docs`"


def test_every_rpc_is_called_in_a_test_of_running_services(root: Path, own_rpcs: list[str]) -> None:
    """The method's name, called or given as an argument, in a test that speaks gRPC for real."""
    suites = ("contract", "integration", "e2e")
    text = "\n".join(path.read_text() for suite in suites for path in (root / "tests" / suite).rglob("*.py"))
    uncalled = [
        rpc
        for rpc in own_rpcs
        if f".{(name := rpc.rpartition('/')[2])}(" not in text and rpc not in text and f'"{name}"' not in text
    ]
    assert not uncalled
