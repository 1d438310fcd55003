"""TLS with client certificates, users with roles, and tokens that run out."""

import asyncio
import ipaddress
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from remuda_core.etcd.cache import PrefixCache
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.election import Election
from remuda_core.etcd.errors import AuthenticationFailed, PermissionDenied, Unavailable
from remuda_core.etcd.ops import put
from remuda_core.testing.etcd import EtcdServer, TlsFiles, etcd_server
from remuda_core.testing.waiting import wait_for


class Authority:
    """A certificate authority for one test."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("test CA")
        builder = _builder(self._name, self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self._certificate = builder.sign(self._key, hashes.SHA256())
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str, address: str) -> tuple[bytes, bytes]:
        """(certificate, key) for a server and client with this IP address, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(name), self._name, key.public_key())
        alternatives = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = builder.add_extension(alternatives, critical=False).add_extension(usage, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - timedelta(minutes=5),
        not_valid_after=now + timedelta(hours=1),
    )


async def test_over_tls_calls_watches_and_leases_work_and_strangers_are_kept_out(tmp_path: Path) -> None:
    authority, stranger = Authority(), Authority()
    cert, key = authority.issue("member", "127.0.0.1")
    for name, content in (("ca", authority.pem), ("cert", cert), ("key", key)):
        (tmp_path / name).write_bytes(content)
    tls = TlsFiles(ca=tmp_path / "ca", cert=tmp_path / "cert", key=tmp_path / "key")
    own_cert, own_key = authority.issue("client", "127.0.0.1")
    with etcd_server(tmp_path / "etcd", tls=tls, election_timeout_ms=200) as server:
        config = server.config(ca=authority.pem, cert=own_cert, key=own_key)
        async with Etcd.open(config) as etcd, etcd.watch("/k") as watch:
            batches = aiter(watch)
            await anext(batches)
            await etcd.put("/k", b"1")
            assert (await anext(batches)).events[0].kv.value == b"1"
            async with Election(etcd, "/leader", b"me", 1) as election:
                leadership = await election.campaign()
                first = leadership.valid_until
                await wait_for(lambda: leadership.valid_until > first, timeout=60)
        other_cert, other_key = stranger.issue("client", "127.0.0.1")
        for wrong in (
            {},
            {"ca": authority.pem},
            {"ca": authority.pem, "cert": other_cert, "key": other_key},
            {"ca": stranger.pem, "cert": own_cert, "key": own_key},
            {"ca": authority.pem, "cert": own_cert, "key": own_key, "server_name": "other.example"},
        ):
            async with Etcd.open(server.config(timeout_seconds=0.5, **wrong)) as etcd:
                with pytest.raises(Unavailable):
                    await etcd.get("/k")


@pytest.fixture(scope="module")
def guarded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """An etcd with users: `api` may do everything under /api/, `reader` only read there."""
    # The cheapest password hash, and tokens of one second.
    arguments = ["--bcrypt-cost=4", "--auth-token-ttl=1"]
    directory = tmp_path_factory.mktemp("etcd")
    with etcd_server(directory, election_timeout_ms=200, arguments=arguments) as server:
        server.control("user", "add", "root:root-secret")
        server.control("user", "grant-role", "root", "root")
        for name, rights in (("api", "readwrite"), ("reader", "read")):
            server.control("user", "add", f"{name}:{name}-secret")
            server.control("role", "add", name)
            server.control("role", "grant-permission", name, "--prefix=true", rights, "/api/")
            server.control("user", "grant-role", name, name)
        server.control("auth", "enable")
        yield server


def as_user(server: EtcdServer, name: str) -> dict[str, str]:
    return {"user": name, "password": f"{name}-secret"}


async def test_a_user_reads_and_writes_what_its_role_covers_and_nothing_else(
    guarded_server: EtcdServer,
) -> None:
    async with Etcd.open(guarded_server.config(**as_user(guarded_server, "api"))) as etcd:
        await etcd.put("/api/k", b"1")
        found = await etcd.get("/api/k")
        assert found is not None
        with pytest.raises(PermissionDenied):
            await etcd.get("/other")
        with pytest.raises(PermissionDenied):
            await etcd.txn(success=[put("/api/k", b"2"), put("/other", b"")])
        with pytest.raises(PermissionDenied):
            await etcd.range_prefix("/")
        async with etcd.watch_prefix("/other") as watch:
            with pytest.raises(PermissionDenied):
                await anext(aiter(watch))
        cache = PrefixCache(etcd, "/other/", lambda kv: kv.value)
        with pytest.raises(PermissionDenied):
            await cache.__aenter__()
    async with Etcd.open(guarded_server.config(**as_user(guarded_server, "reader"))) as etcd:
        assert await etcd.get("/api/k") == found
        with pytest.raises(PermissionDenied):
            await etcd.put("/api/k", b"")


async def test_a_wrong_password_and_no_password_are_refused(guarded_server: EtcdServer) -> None:
    async with Etcd.open(guarded_server.config(user="api", password="wrong")) as etcd:
        with pytest.raises(AuthenticationFailed, match="invalid user ID or password"):
            await etcd.get("/api/k")
    async with Etcd.open(guarded_server.config()) as etcd:
        with pytest.raises(AuthenticationFailed, match="user name is empty"):
            await etcd.get("/api/k")


async def test_a_user_for_an_etcd_without_authentication_is_an_error(etcd_server: EtcdServer) -> None:
    async with Etcd.open(etcd_server.config(user="api", password="x")) as etcd:
        with pytest.raises(AuthenticationFailed, match="not enabled"):
            await etcd.get("/k")


async def test_an_expired_token_is_renewed_for_reads_writes_and_watches(guarded_server: EtcdServer) -> None:
    async with Etcd.open(guarded_server.config(**as_user(guarded_server, "api"))) as etcd:
        await etcd.put("/api/k", b"1")
        first = etcd.transport.token
        assert first is not None
        # Nothing tells that a token has run out but using it, which would prolong it: let its time pass.
        await asyncio.sleep(2.3)
        async with etcd.watch("/api/k") as watch:
            batches = aiter(watch)
            await anext(batches)
            second = etcd.transport.token
            assert second not in (None, first)
            await asyncio.sleep(2.3)
            # Many at once find it expired: they log in once.
            await asyncio.gather(*(etcd.put(f"/api/{number}", b"") for number in range(20)))
            third = etcd.transport.token
            assert third not in (None, second)
            await etcd.put("/api/k", b"2")
            # The watch that was accepted goes on.
            assert (await anext(batches)).events[0].kv.value == b"2"
        assert etcd.transport.logins == 3


async def test_tokens_that_died_with_etcd_are_renewed(guarded_server: EtcdServer) -> None:
    config = guarded_server.config(**as_user(guarded_server, "api"))
    async with (
        Etcd.open(config) as etcd,
        PrefixCache(etcd, "/api/", lambda kv: kv.value) as cache,
        Election(etcd, "/api/leader", b"me", 10) as election,
    ):
        leadership = await election.campaign()
        guarded_server.restart()
        revision = (await leadership.txn(success=[put("/api/k", b"3")])).revision
        await cache.wait_revision(revision, 10)
        entry = cache.get("/api/k")
        assert entry is not None
        assert entry.value == b"3"
        kept_after = leadership.valid_until
        await wait_for(lambda: leadership.valid_until > kept_after, timeout=60)


async def test_a_role_that_changes_while_a_client_is_logged_in_takes_effect(
    guarded_server: EtcdServer,
) -> None:
    root = ["--user=root:root-secret"]
    async with Etcd.open(guarded_server.config(**as_user(guarded_server, "reader"))) as etcd:
        await etcd.get("/api/k")
        guarded_server.control("role", "grant-permission", "reader", "--prefix=true", "read", "/more/", *root)
        assert await etcd.get("/more/k") is None
        guarded_server.control("role", "revoke-permission", "reader", "--prefix=true", "/more/", *root)
        with pytest.raises(PermissionDenied):
            await etcd.get("/more/k")
