"""Builders of transactions, and what may serve as a witness."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from remuda.etcd.v1 import etcd_pb2 as pb
from remuda_core.etcd.client import witness_value
from remuda_core.etcd.ops import (
    Compare,
    absent,
    absent_prefix,
    create_is,
    delete,
    delete_prefix,
    exists,
    get,
    mod_is,
    prefix_end,
    put,
    value_is,
)


@given(st.text(min_size=1), st.text())
def test_the_end_of_a_prefix_lies_after_every_key_with_it_and_before_all_others(
    prefix: str, other: str
) -> None:
    end = prefix_end(prefix)
    assert prefix.encode() <= (prefix + other).encode() < end
    inside = prefix.encode() <= other.encode() < end
    assert inside == other.encode().startswith(prefix.encode())


def test_the_empty_prefix_has_no_end() -> None:
    assert prefix_end("") == b"\0"


def test_deleting_the_empty_prefix_is_refused() -> None:
    with pytest.raises(ValueError, match="everything"):
        delete_prefix("")


def test_comparing_the_empty_prefix_absent_is_refused() -> None:
    with pytest.raises(ValueError, match="everything"):
        absent_prefix("")


@pytest.mark.parametrize("pin", [mod_is("/k", 7), mod_is("/k", 0), absent("/k"), create_is("/k", 0)])
def test_a_witness_is_pinned_and_put_in_one_transaction(pin: Compare) -> None:
    request = pb.TxnRequest(compare=[exists("/other"), pin], success=[delete("/other"), put("/k", b"new")])
    assert witness_value(request, "/k") == b"new"


@pytest.mark.parametrize("pin", [create_is("/k", 7), exists("/k"), value_is("/k", b"old"), mod_is("/j", 7)])
def test_a_comparison_that_may_hold_again_after_the_write_pins_no_witness(pin: Compare) -> None:
    request = pb.TxnRequest(compare=[pin], success=[put("/k", b"new")])
    with pytest.raises(ValueError, match="no comparison pins"):
        witness_value(request, "/k")


def test_a_witness_that_is_not_put_is_refused() -> None:
    request = pb.TxnRequest(compare=[mod_is("/k", 7)], success=[get("/k"), put("/j", b"")])
    with pytest.raises(ValueError, match="does not put"):
        witness_value(request, "/k")
