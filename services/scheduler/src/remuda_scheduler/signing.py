"""The leader's word to the image store: which host may read which image, for which operation."""

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

    def sign(self, *, host_id: HostId, operation_id: OperationId, images: Sequence[ImageId]) -> SignedGrant:
        grant = grants.grant(
            host=host_id,
            operation=operation_id,
            readable_images=images,
            expires=datetime.now(UTC) + self._valid,
        )
        return grants.sign(grant, self._key)
