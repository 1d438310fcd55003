"""The leader's word to the image store: which images a host may read, which one fill, for which operation."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from remuda.image.v1.chunk_pb2 import SignedGrant
from remuda_core.auth import grants
from remuda_core.ids import HostId, ImageId, OperationId


class GrantSigner:
    """Implements ports.Grants."""

    def __init__(self, key: Ed25519PrivateKey, *, valid_seconds: float) -> None:
        self._key = key
        self._valid = timedelta(seconds=valid_seconds)

    def sign(
        self,
        *,
        host_id: HostId,
        operation_id: OperationId,
        images: Sequence[ImageId],
        writable_image: ImageId | None = None,
        byte_limit: int = 0,
        at_least_seconds: float = 0.0,
    ) -> SignedGrant:
        valid = max(self._valid, timedelta(seconds=at_least_seconds))
        grant = grants.grant(
            host=host_id,
            operation=operation_id,
            readable_images=images,
            expires=datetime.now(UTC) + valid,
            writable_image=writable_image,
            byte_limit=byte_limit,
        )
        return grants.sign(grant, self._key)
