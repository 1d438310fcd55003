"""One-time tokens: good for the first attach of one host; only the digest is stored."""

import hashlib
import hmac

from remuda.store.v1.host_pb2 import HostRecord
from remuda_core.errors import Reason, RemudaError


def check_token(record: HostRecord, token: str) -> None:
    """Raises ENROLMENT_REFUSED unless `token` is the one that CreateHost gave for this host."""
    digest = hashlib.sha256(token.encode()).digest()
    if not token or not hmac.compare_digest(digest, record.enrolment_digest):
        raise RemudaError(
            Reason.ENROLMENT_REFUSED,
            f"the enrolment token of host {record.id} is missing or wrong",
            metadata={"host": f"hosts/{record.id}"},
        )
