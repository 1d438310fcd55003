"""Errors on the wire and back."""

import base64
import string
from urllib.parse import quote

import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from hypothesis import given, settings
from hypothesis import strategies as st
from remuda_core.errors import REASONS, Reason, RemudaError, Violation
from remuda_core.etcd.errors import (
    AuthenticationFailed,
    Compacted,
    EtcdError,
    InvalidRequest,
    OutcomeUnknown,
    PermissionDenied,
    TooLarge,
    Unavailable,
)
from remuda_core.rpc import status

TEXT = st.text(max_size=20)
# What gRPC sends as it is in `grpc-message`.
ASCII = (string.ascii_letters + string.digits + string.punctuation + " ").replace("%", "")


@given(
    st.sampled_from(Reason),
    TEXT,
    st.dictionaries(TEXT, TEXT, max_size=3),
    st.none() | st.integers(0, 10_000).map(lambda ms: ms / 1000),
    st.lists(st.builds(Violation, TEXT, TEXT), max_size=3),
    st.sampled_from(["", "hosts/h1", "projects/demo/instances/web"]),
)
def test_an_error_comes_back_as_it_went(
    reason: Reason,
    message: str,
    metadata: dict[str, str],
    retry: float | None,
    violations: list[Violation],
    resource: str,
) -> None:
    error = RemudaError(
        reason,
        message,
        metadata=metadata,
        retry_after_seconds=retry,
        violations=violations,
        resource=resource,
    )
    back = status.from_status(status.to_status(error, request_id="id-1"))
    assert (back.reason, back.message, back.metadata) == (reason, message, metadata)
    assert (back.retry_after_seconds, back.violations, back.resource) == (retry, tuple(violations), resource)


@pytest.mark.parametrize("reason", Reason)
def test_every_error_has_its_code_and_exactly_one_error_info(reason: Reason) -> None:
    made = status.to_status(RemudaError(reason, "x"), request_id="id-1")
    infos = [detail for detail in made.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    assert made.code == REASONS[reason].code.value[0]
    assert len(infos) == 1
    assert status.request_id_of(made) == "id-1"


def test_violations_are_a_bad_request_or_a_failed_precondition_by_the_code() -> None:
    violations = [Violation("instance", "is PAUSED")]
    bad = status.to_status(RemudaError(Reason.INVALID_ARGUMENT, "x", violations=violations))
    assert bad.details[1].Is(error_details_pb2.BadRequest.DESCRIPTOR)
    failed = status.to_status(RemudaError(Reason.MEMORY_WOULD_BE_LOST, "x", violations=violations))
    precondition = error_details_pb2.PreconditionFailure()
    assert failed.details[1].Unpack(precondition)
    assert precondition.violations[0].type == "MEMORY_WOULD_BE_LOST"


def test_an_error_that_is_not_ours_becomes_the_nearest_reason_for_its_code() -> None:
    back = status.from_status(status_pb2.Status(code=StatusCode.UNAVAILABLE.value[0], message="refused"))
    assert (back.reason, back.message, back.metadata) == (
        Reason.UNAVAILABLE,
        "refused",
        {"code": "UNAVAILABLE"},
    )
    unimplemented = status.from_status(status_pb2.Status(code=StatusCode.UNIMPLEMENTED.value[0]))
    assert unimplemented.reason is Reason.UNIMPLEMENTED
    odd = status.from_status(status_pb2.Status(code=StatusCode.DATA_LOSS.value[0]))
    assert odd.reason is Reason.INTERNAL


def test_a_reason_of_a_newer_version_is_kept_in_metadata() -> None:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason="FROM_TOMORROW", domain="remuda", metadata={"a": "1"}))
    back = status.from_status(status_pb2.Status(code=9, message="x", details=[detail]))
    assert back.reason is Reason.INTERNAL
    assert back.metadata == {"a": "1", "reason": "FROM_TOMORROW"}


def test_an_exception_means_what_a_caller_can_act_on() -> None:
    ours = RemudaError(Reason.HOST_IN_USE, "x")
    assert status.from_exception(ours) is ours
    unknown = status.from_exception(OutcomeUnknown("?"))
    assert unknown is not None
    assert unknown.reason is Reason.OUTCOME_UNKNOWN
    for error in (Unavailable("away"), Compacted("gone")):
        found = status.from_exception(error)
        assert found is not None
        assert found.reason is Reason.STORE_UNAVAILABLE
    large = status.from_exception(TooLarge("etcdserver: request is too large"))
    assert large is not None
    assert large.reason is Reason.REQUEST_TOO_LARGE
    late = status.from_exception(TimeoutError())
    assert late is not None
    assert late.reason is Reason.DEADLINE_EXCEEDED
    assert status.from_exception(KeyError("a fault")) is None


@pytest.mark.parametrize("kind", [PermissionDenied, AuthenticationFailed, InvalidRequest])
def test_what_etcd_will_never_allow_is_a_fault_and_no_reason_to_try_again(kind: type[EtcdError]) -> None:
    assert kind.permanent
    assert status.from_exception(kind("etcdserver: permission denied")) is None
    assert not Unavailable.permanent


def test_grpcs_own_refusal_of_a_large_message_is_told_from_a_limited_rate() -> None:
    code = StatusCode.RESOURCE_EXHAUSTED.value[0]
    large = status.from_status(
        status_pb2.Status(code=code, message="SERVER: Received message larger than max (9 vs. 4)")
    )
    assert large.reason is Reason.REQUEST_TOO_LARGE
    assert status.from_status(status_pb2.Status(code=code, message="slow down")).reason is Reason.INTERNAL


LONG = st.integers(0, 30_000).flatmap(
    lambda n: st.sampled_from(["a", "\u00e9", "\U0001f600", "%", "\n", "ab "]).map(lambda piece: piece * n)
)


@settings(max_examples=50)
@given(
    st.sampled_from([Reason.INVALID_ARGUMENT, Reason.INSTANCE_NOT_FOUND, Reason.MEMORY_WOULD_BE_LOST]),
    LONG,
    st.lists(st.tuples(LONG, LONG), max_size=30),
    st.lists(st.builds(Violation, LONG, LONG), max_size=30),
)
def test_any_error_fits_into_the_trailers_that_grpc_allows(
    reason: Reason, text: str, metadata: list[tuple[str, str]], violations: list[Violation]
) -> None:
    error = RemudaError(
        reason, text, metadata=dict(metadata), violations=violations, resource=f"hosts/{text}"
    )
    made = status.to_status(error, request_id="r" * 128)
    assert len(base64.b64encode(made.SerializeToString())) + len(quote(made.message, safe=ASCII)) < 7000
    assert status.from_status(made).reason is reason
    assert status.request_id_of(made) == "r" * 128


def test_what_is_cut_shows_its_beginning_and_that_it_was_cut() -> None:
    error = RemudaError(
        Reason.INVALID_ARGUMENT, "m" * 5000, metadata={"given": "g" * 5000, "short": "s"}, violations=[]
    )
    back = status.from_status(status.to_status(error))
    assert back.message == "m" * 1021 + "..."
    assert back.metadata == {"given": "g" * 509 + "...", "short": "s"}
