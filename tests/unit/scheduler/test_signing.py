"""Grants as the leader signs them."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from remuda_core.auth import grants
from remuda_core.errors import RemudaError
from remuda_core.ids import HostId, ImageId, OperationId
from remuda_scheduler.signing import GrantSigner

KEY = Ed25519PrivateKey.generate()
HOST, BASE, NEW = HostId("h"), ImageId("base"), ImageId("new")


def test_a_grant_lets_one_host_read_some_images_and_fill_one() -> None:
    signed = GrantSigner(KEY, valid_seconds=60).sign(
        host_id=HOST, operation_id=OperationId("o"), images=[BASE], writable_image=NEW, byte_limit=7
    )
    found = grants.verify(signed, KEY.public_key(), host=HOST, image=BASE, writes=NEW)
    assert found.byte_limit == 7
    with pytest.raises(RemudaError, match="filled"):
        grants.verify(signed, KEY.public_key(), host=HOST, writes=BASE)


def test_one_that_fills_nothing_is_for_reading_only() -> None:
    signed = GrantSigner(KEY, valid_seconds=60).sign(
        host_id=HOST, operation_id=OperationId("o"), images=[BASE]
    )
    assert grants.verify(signed, KEY.public_key(), host=HOST, image=BASE).writable_image == ""


@pytest.mark.parametrize(("at_least", "hours"), [(0.0, 1), (60.0, 1), (6 * 3600.0, 6)])
def test_it_is_valid_as_long_as_configured_and_no_less_than_asked(at_least: float, hours: int) -> None:
    before = datetime.now(UTC)
    signed = GrantSigner(KEY, valid_seconds=3600).sign(
        host_id=HOST, operation_id=OperationId("o"), images=[BASE], at_least_seconds=at_least
    )
    expires = grants.verify(signed, KEY.public_key(), host=HOST).expire_time.ToDatetime(tzinfo=UTC)
    assert before + timedelta(hours=hours) <= expires <= datetime.now(UTC) + timedelta(hours=hours)
