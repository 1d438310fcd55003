"""Certificates of the lab."""

from __future__ import annotations

import stat
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store
from remuda_lab.pki import (
    Authority,
    Identity,
    create_grant_keys,
    host_identity,
    service_identity,
    user_identity,
)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "pki")


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_a_service_is_verified_by_name_and_by_address(authority: Authority, tmp_path: Path) -> None:
    identity = service_identity("scheduler", instance="scheduler-1", addresses=[IPv4Address("10.77.0.2")])
    pair = authority.issue(identity, tmp_path / "s")
    store = Store([load(authority.certificate)])
    for subject in (x509.DNSName("scheduler-1"), x509.IPAddress(IPv4Address("10.77.0.2"))):
        chain = PolicyBuilder().store(store).build_server_verifier(subject).verify(load(pair.certificate), [])
        assert len(chain) == 2
    san = names(load(pair.certificate))
    assert san.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://remuda/service/scheduler"]


def test_an_agent_is_bound_to_its_hosts_uuid(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue(host_identity("host1", "u-u-i-d", IPv4Address("10.77.0.11")), tmp_path / "h")
    san = names(load(pair.certificate))
    assert san.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://remuda/host/u-u-i-d"]


def test_a_user_carries_roles_as_organisations(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue(user_identity("ann", ["admin", "project:demo"]), tmp_path / "u")
    subject = load(pair.certificate).subject
    organisations = [
        attribute.value for attribute in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    ]
    assert organisations == ["admin", "project:demo"]
    assert subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "ann"


def test_keys_are_readable_by_their_owner_only(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue(Identity(common_name="x", path="user/x"), tmp_path / "x")
    for key in (pair.key, authority.directory / "ca-key.pem", create_grant_keys(tmp_path / "g").key):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_a_second_create_keeps_the_authority_and_the_grant_keys(authority: Authority, tmp_path: Path) -> None:
    before = authority.certificate.read_bytes()
    assert Authority.create(authority.directory).certificate.read_bytes() == before
    pair = create_grant_keys(tmp_path / "g")
    public = pair.certificate.read_bytes()
    assert create_grant_keys(tmp_path / "g").certificate.read_bytes() == public


def test_the_grant_keys_are_one_ed25519_pair(tmp_path: Path) -> None:
    pair = create_grant_keys(tmp_path / "g")
    private = serialization.load_pem_private_key(pair.key.read_bytes(), password=None)
    public = serialization.load_pem_public_key(pair.certificate.read_bytes())
    assert isinstance(private, Ed25519PrivateKey)
    assert isinstance(public, Ed25519PublicKey)
    public.verify(private.sign(b"grant"), b"grant")


def test_the_hypervisors_certificate_is_no_identity_of_the_mesh(authority: Authority, tmp_path: Path) -> None:
    authority.issue_hypervisor("host1", IPv4Address("10.77.0.11"), tmp_path / "etc")
    pki = tmp_path / "etc" / "pki"
    for name in ("libvirt/servercert.pem", "libvirt/clientcert.pem", "qemu/server-cert.pem"):
        san = names(load(pki / name))
        assert san.get_values_for_type(x509.UniformResourceIdentifier) == []
        assert san.get_values_for_type(x509.IPAddress) == [IPv4Address("10.77.0.11")]
    assert load(pki / "CA/cacert.pem") == load(authority.certificate)
    assert (pki / "qemu/ca-cert.pem").read_bytes() == authority.certificate.read_bytes()
    for key in ("libvirt/private/serverkey.pem", "libvirt/private/clientkey.pem", "qemu/client-key.pem"):
        assert stat.S_IMODE((pki / key).stat().st_mode) == 0o600
