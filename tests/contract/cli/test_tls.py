"""mTLS as the services want it: own authority, client certificate, a name that is not the address."""

import datetime
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from remuda.compute.v1 import flavor_pb2, flavor_pb2_grpc
from remuda_cli.main import run

Key = ec.EllipticCurvePrivateKey


def certificate(name: str, key: Key, issuer: str, signer: Key, *, authority: bool = False) -> bytes:
    now = datetime.datetime.now(datetime.UTC)

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    made = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Flavors:
    """Only what these tests call."""

    CreateFlavor = GetFlavor = DeleteFlavor = None

    def __init__(self) -> None:
        self.peers: list[Any] = []

    def ListFlavors(self, request: Any, context: Any) -> flavor_pb2.ListFlavorsResponse:
        self.peers.append(context.auth_context()["x509_common_name"])
        return flavor_pb2.ListFlavorsResponse(flavors=[flavor_pb2.Flavor(name="flavors/small")])


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flavors]:
    authority, server_key, client_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    files = {
        "CACERT": certificate("remuda test", authority, "remuda test", authority, authority=True),
        "CERT": certificate("alice", client_key, "remuda test", authority),
        "KEY": pem(client_key),
    }
    for name, content in files.items():
        file = tmp_path / f"{name}.pem"
        file.write_bytes(content)
        monkeypatch.setenv(f"REMUDA_{name}", str(file))
    credentials = grpc.ssl_server_credentials(
        [(pem(server_key), certificate("api.remuda.test", server_key, "remuda test", authority))],
        root_certificates=files["CACERT"],
        require_client_auth=True,
    )
    flavors: Any = Flavors()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    flavor_pb2_grpc.add_FlavorServiceServicer_to_server(flavors, server)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    monkeypatch.setenv("REMUDA_ENDPOINT", f"127.0.0.1:{port}")
    monkeypatch.setenv("REMUDA_SERVER_NAME", "api.remuda.test")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    yield flavors
    server.stop(grace=None).wait(5)


def test_a_client_certificate_and_a_server_name_come_from_the_environment(
    served: Flavors, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["flavor", "list", "-o", "name"]) == 0
    assert capfd.readouterr().out == "flavors/small\n"
    assert served.peers == [[b"alice"]]


def test_a_server_with_another_name_is_not_talked_to(
    served: Flavors, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMUDA_SERVER_NAME", "other.remuda.test")
    assert run(["flavor", "list"]) == 5
    assert "check REMUDA_ENDPOINT and REMUDA_CACERT" in capfd.readouterr().err
    assert served.peers == []


def test_without_a_certificate_the_call_does_not_get_through(
    served: Flavors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REMUDA_CERT")
    monkeypatch.delenv("REMUDA_KEY")
    assert run(["flavor", "list"]) == 5
    assert served.peers == []
