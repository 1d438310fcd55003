"""Image grants: what the leader lets one host read, signed with Ed25519 (RFC 8032). Pure functions."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from google.protobuf.message import DecodeError
from remuda.image.v1.chunk_pb2 import Grant, SignedGrant

from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import HostId, ImageId, OperationId

# Signed in front of the bytes: a signature made for anything else with the same key fits no grant.
_CONTEXT = b"remuda.image.v1.Grant\0"
_CLOCK_SKEW = timedelta(seconds=30)


def private_key(pem: bytes) -> Ed25519PrivateKey:
    """Raises ValueError when it is no Ed25519 private key."""
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("grant key: not an Ed25519 private key")
    return key


def public_key(pem: bytes) -> Ed25519PublicKey:
    """Raises ValueError when it is no Ed25519 public key."""
    key = load_pem_public_key(pem)
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("grant key: not an Ed25519 public key")
    return key


def grant(
    *,
    host: HostId,
    operation: OperationId,
    readable_images: Sequence[ImageId],
    expires: datetime,
    writable_image: ImageId | None = None,
    byte_limit: int = 0,
) -> Grant:
    """`byte_limit`: most that may be added to the store for `writable_image`, as stored."""
    made = Grant(
        host_id=host,
        operation_id=operation,
        readable_images=readable_images,
        writable_image=writable_image or "",
        byte_limit=byte_limit,
    )
    made.expire_time.FromDatetime(expires.astimezone(UTC))
    return made


def sign(grant: Grant, key: Ed25519PrivateKey) -> SignedGrant:
    data = grant.SerializeToString(deterministic=True)
    return SignedGrant(grant=data, signature=key.sign(_CONTEXT + data))


def verify(
    signed: SignedGrant,
    key: Ed25519PublicKey,
    *,
    host: HostId | None,
    image: ImageId | None = None,
    writes: ImageId | None = None,
    now: datetime | None = None,
) -> Grant:
    """The grant, when the leader signed it for `host`, it has not expired, and lets `image` be read and
    `writes` be filled.

    `host` is the caller's, from its certificate; None never passes. Clocks may differ by 30 s.
    Raises RemudaError GRANT_REFUSED.
    """
    try:
        key.verify(signed.signature, _CONTEXT + signed.grant)
        found = Grant.FromString(signed.grant)
    except (InvalidSignature, DecodeError) as error:
        raise _refused("it is not signed by the scheduler") from error
    if not host or found.host_id != host:
        raise _refused("it is for another host")
    if (now or datetime.now(UTC)) > found.expire_time.ToDatetime(tzinfo=UTC) + _CLOCK_SKEW:
        raise _refused("it has expired")
    if image is not None and image not in found.readable_images:
        raise _refused(f"it does not cover image {image}")
    # A grant that lets nothing be filled says so with an empty image, which must not be taken for one.
    if writes is not None and (not writes or writes != found.writable_image):
        raise _refused(f"it does not let image {writes} be filled")
    return found


def _refused(why: str) -> RemudaError:
    return RemudaError(Reason.GRANT_REFUSED, f"the image grant is refused: {why}")
