"""Page tokens, and the digests of requests."""

import base64
import json
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from remuda.compute.v1 import flavor_pb2, instance_pb2
from remuda_api.admission.requests import Call
from remuda_api.listing.tokens import PageToken, decode, encode, query_digest
from remuda_core.errors import Reason, RemudaError


@given(st.integers(min_value=1, max_value=2**62), st.text())
def test_a_token_comes_back_as_it_was_made(revision: int, last_key: str) -> None:
    token = PageToken(revision=revision, last_key=last_key, query=query_digest("q"))
    assert decode(encode(token), query=query_digest("q"), prefix=last_key[:3]) == token


@given(st.text(max_size=100))
def test_any_other_text_is_refused_as_damaged(text: str) -> None:
    with pytest.raises(RemudaError) as caught:
        decode(text, query="q", prefix="")
    assert caught.value.reason is Reason.PAGE_TOKEN_INVALID


def test_a_token_is_good_for_its_query_only() -> None:
    token = encode(PageToken(revision=1, last_key="k", query=query_digest("a", "b")))
    with pytest.raises(RemudaError) as caught:
        decode(token, query=query_digest("ab"), prefix="")
    assert caught.value.reason is Reason.PAGE_TOKEN_INVALID
    assert query_digest("a", "b") != query_digest("ab", "")


@pytest.mark.parametrize("key", ["/r/cancels/x", "/r/flavors", "", "/r/flavorsx"])
def test_a_token_leads_to_no_key_outside_of_the_list(key: str) -> None:
    token = encode(PageToken(revision=1, last_key=key, query="q"))
    with pytest.raises(RemudaError) as caught:
        decode(token, query="q", prefix="/r/flavors/")
    assert caught.value.reason is Reason.PAGE_TOKEN_INVALID


@pytest.mark.parametrize(
    "content",
    [
        '[5, "\\ud800", "q"]',
        f'[{10**30}, "k", "q"]',
        '[true, "k", "q"]',
        '[1, 5, "q"]',
        '[1, ["k"], "q"]',
        "5",
        "[" * 1500,
        json.dumps([1, "k" * 3000, "q"]),
    ],
)
def test_a_crafted_token_is_damaged_and_no_fault(content: str) -> None:
    with pytest.raises(RemudaError) as caught:
        decode(base64.urlsafe_b64encode(content.encode()).decode().rstrip("="), query="q", prefix="")
    assert caught.value.reason is Reason.PAGE_TOKEN_INVALID


def call(rpc: str = "StopInstance", **fields: object) -> Call:
    request = instance_pb2.StopInstanceRequest(name="projects/p/instances/i", **fields)  # type: ignore[arg-type]
    return Call.of(rpc, request, principal="user/a")


def test_a_digest_stands_for_rpc_and_body_without_the_request_id() -> None:
    one, two = str(uuid.uuid4()), str(uuid.uuid4())
    assert call(request_id=one).digest() == call(request_id=two).digest()
    assert call(request_id=one).digest() != call(request_id=one, force=True).digest()
    assert call(request_id=one).digest() != call("Other", request_id=one).digest()


def test_a_request_id_is_a_uuid_in_any_spelling() -> None:
    given_id = str(uuid.uuid4())
    assert call(request_id=given_id.upper()).request_id == given_id
    assert call().request_id == ""
    request = flavor_pb2.CreateFlavorRequest(request_id="../x")
    with pytest.raises(RemudaError) as caught:
        Call.of("CreateFlavor", request, principal="user/a")
    assert caught.value.reason is Reason.INVALID_ARGUMENT


def test_what_this_version_does_not_know_is_not_kept() -> None:
    request = instance_pb2.StopInstanceRequest(name="projects/p/instances/i")
    plain = request.SerializeToString()
    # Field 1000, a string.
    request.MergeFromString(b"\xc2\x3e\x03abc")
    assert request.SerializeToString() != plain
    assert Call.of("StopInstance", request, principal="user/a").request.SerializeToString() == plain
