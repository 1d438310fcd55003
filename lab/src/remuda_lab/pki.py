"""The lab's certificate authority: one identity per service, host and user; keys for libvirt, QEMU and
grants.

Two kinds of certificate leave it. Those with a SPIFFE URI (spiffe://remuda/...) are identities of the mesh.
A host's libvirt and QEMU get a certificate of their own without one: whoever steals it from a hypervisor's
process cannot speak as an agent.
"""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

TRUST_DOMAIN = "remuda"
_LIFETIME = datetime.timedelta(days=30)
_BACKDATE = datetime.timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a certificate is for. ``path`` follows spiffe://remuda/; None for libvirt's and QEMU's."""

    common_name: str
    path: str | None
    dns: tuple[str, ...] = ()
    addresses: tuple[IPv4Address, ...] = ()
    roles: tuple[str, ...] = ()
    """Organisation fields: ``admin``, ``project:demo``."""
    key_encipherment: bool = False
    """Means nothing for an elliptic curve key, but libvirt 9.0 refuses a certificate without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """PEM files of one identity."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA in a directory: ``ca.pem``, ``ca-key.pem``, and what it has issued below it."""

    directory: Path

    @classmethod
    def create(cls, directory: Path) -> Authority:
        """Make the CA, unless the directory holds one already."""
        authority = cls(directory)
        if authority.certificate.exists():
            return authority
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Remuda lab CA")])
        built = (
            _builder(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True, encipherment=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        _write_key(directory / "ca-key.pem", key)
        # The certificate comes last: where it exists, the CA is whole.
        _write(authority.certificate, built.public_bytes(serialization.Encoding.PEM), 0o644)
        return authority

    @property
    def certificate(self) -> Path:
        return self.directory / "ca.pem"

    def issue(self, identity: Identity, directory: Path) -> KeyPair:
        """Write ``cert.pem`` and ``key.pem`` for an identity, usable as client and as server; a fresh key
        each time.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        ca = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        ca_key = serialization.load_pem_private_key(
            (self.directory / "ca-key.pem").read_bytes(), password=None
        )
        assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
        certificate = (
            _builder(_subject(identity), ca.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False, encipherment=identity.key_encipherment), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(_names(identity)), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
                critical=False,
            )
            .sign(ca_key, hashes.SHA256())
        )
        pair = KeyPair(certificate=directory / "cert.pem", key=directory / "key.pem")
        _write_key(pair.key, key)
        _write(pair.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return pair

    def issue_hypervisor(self, name: str, address: IPv4Address, etc: Path) -> None:
        """Put libvirt's and QEMU's certificates below a host's ``etc`` where both look for them by default.

        Paths: libvirt.org/kbase/tlscerts.html and qemu.conf's ``default_tls_x509_cert_dir``.
        """
        pki = etc / "pki"
        identity = Identity(
            common_name=name, path=None, dns=(name,), addresses=(address,), key_encipherment=True
        )
        pair = self.issue(identity, pki / "hypervisor")
        for target in (pki / "CA/cacert.pem", pki / "qemu/ca-cert.pem"):
            _copy(self.certificate, target)
        for kind in ("server", "client"):
            _copy(pair.certificate, pki / f"libvirt/{kind}cert.pem")
            _copy(pair.key, pki / f"libvirt/private/{kind}key.pem")
            _copy(pair.certificate, pki / f"qemu/{kind}-cert.pem")
            _copy(pair.key, pki / f"qemu/{kind}-key.pem")


def service_identity(
    service: str, *, instance: str, addresses: Sequence[IPv4Address], extra_dns: Sequence[str] = ()
) -> Identity:
    """``service`` is the role (api, scheduler, image-store); ``instance`` its name in the lab
    (scheduler-1).
    """
    return Identity(
        common_name=instance,
        path=f"service/{service}",
        dns=(instance, service, *extra_dns) if instance != service else (service, *extra_dns),
        addresses=tuple(addresses),
    )


def host_identity(name: str, host_uuid: str, address: IPv4Address) -> Identity:
    """An agent: bound to the host's UUID, never to its name."""
    return Identity(common_name=name, path=f"host/{host_uuid}", dns=(name,), addresses=(address,))


def user_identity(name: str, roles: Sequence[str]) -> Identity:
    """A person or a program that calls the api."""
    return Identity(common_name=name, path=f"user/{name}", roles=tuple(roles))


def create_grant_keys(directory: Path) -> KeyPair:
    """The Ed25519 pair that signs image grants: ``private.pem`` for schedulers, ``public.pem`` for image
    stores.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    pair = KeyPair(certificate=directory / "public.pem", key=directory / "private.pem")
    if not pair.certificate.exists():
        key = Ed25519PrivateKey.generate()
        _write_key(pair.key, key)
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        _write(pair.certificate, public, 0o644)
    return pair


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + _LIFETIME)
    )


def _subject(identity: Identity) -> x509.Name:
    roles = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, role) for role in identity.roles]
    return x509.Name([*roles, x509.NameAttribute(NameOID.COMMON_NAME, identity.common_name)])


def _names(identity: Identity) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in identity.dns]
    names += [x509.IPAddress(address) for address in identity.addresses]
    if identity.path is not None:
        names.append(x509.UniformResourceIdentifier(f"spiffe://{TRUST_DOMAIN}/{identity.path}"))
    return names


def _key_usage(*, ca: bool, encipherment: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(path, pem, 0o600)


def _write(path: Path, data: bytes, mode: int) -> None:
    # Created with its mode, so that a key is never readable by others, not even for a moment.
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    shutil.copyfile(source, target)
    target.chmod(source.stat().st_mode & 0o777)
