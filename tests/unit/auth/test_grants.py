"""Grants that the leader signs."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from remuda.image.v1.chunk_pb2 import SignedGrant
from remuda_core.auth import grants
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, ImageId, OperationId

KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key()
HOST, IMAGE = HostId("h1"), ImageId("i1")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
GRANT = grants.grant(
    host=HOST, operation=OperationId("o1"), readable_images=[IMAGE], expires=NOW + timedelta(minutes=10)
)
SIGNED = grants.sign(GRANT, KEY)


def test_a_grant_of_the_leader_for_this_host_and_image_is_accepted() -> None:
    assert grants.verify(SIGNED, PUBLIC, host=HOST, image=IMAGE, now=NOW) == GRANT


@pytest.mark.parametrize(
    ("signed", "host", "image", "later", "said"),
    [
        (SIGNED, "h2", "i1", 0, "another host"),
        (SIGNED, None, "i1", 0, "another host"),
        (SIGNED, "h1", "i2", 0, "does not cover image i2"),
        (SIGNED, "h1", "i1", 11 * 60, "expired"),
        (SignedGrant(grant=SIGNED.grant + b"\n\x02h2", signature=SIGNED.signature), "h2", "i1", 0, "signed"),
        (SignedGrant(grant=SIGNED.grant, signature=KEY.sign(SIGNED.grant)), "h1", "i1", 0, "signed"),
        (grants.sign(GRANT, Ed25519PrivateKey.generate()), "h1", "i1", 0, "signed"),
        (SignedGrant(), "h1", "i1", 0, "signed"),
    ],
)
def test_any_other_grant_is_refused(
    signed: SignedGrant, host: str | None, image: str, later: int, said: str
) -> None:
    caller = HostId(host) if host is not None else None
    with pytest.raises(RemudaError, match=said) as caught:
        grants.verify(signed, PUBLIC, host=caller, image=ImageId(image), now=NOW + timedelta(seconds=later))
    assert caught.value.reason is Reason.GRANT_REFUSED


def test_a_grant_without_host_is_for_nobody() -> None:
    empty = grants.sign(
        grants.grant(host=HostId(""), operation=OperationId("o"), readable_images=[], expires=NOW), KEY
    )
    with pytest.raises(RemudaError):
        grants.verify(empty, PUBLIC, host=HostId(""), now=NOW)


def test_clocks_may_differ_a_little() -> None:
    assert grants.verify(SIGNED, PUBLIC, host=HOST, now=NOW + timedelta(minutes=10, seconds=29)) == GRANT


def test_keys_are_read_from_pem_and_must_be_ed25519() -> None:
    private = KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = PUBLIC.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    signed = grants.sign(GRANT, grants.private_key(private))
    assert grants.verify(signed, grants.public_key(public), host=HOST, now=NOW) == GRANT
    other = generate_private_key(SECP256R1())
    pem = other.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ValueError, match="Ed25519"):
        grants.private_key(pem)
    with pytest.raises(ValueError, match="Ed25519"):
        grants.public_key(
            other.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
