"""etag: the mod_revision of the key that the owner owns."""

from remuda_core.errors import etag_mismatch
from remuda_core.etcd.model import KeyValue


def check_etag(name: str, given: str, seen: KeyValue) -> None:
    """Raises RemudaError ETAG_MISMATCH; an empty `given` accepts everything."""
    current = str(seen.mod_revision)
    if given and given.strip('"') != current:
        raise etag_mismatch(name, given=given, current=current)
