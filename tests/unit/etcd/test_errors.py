"""What a failed rpc means: whether a write may have been applied is decided here."""

import grpc
import pytest
from remuda_core.etcd import errors
from remuda_core.etcd.errors import Verdict, as_error, judge

S = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "details", "verdict"),
    [
        (
            S.UNAVAILABLE,
            "connections to all backends failing; last error: Connection refused",
            Verdict.NOT_APPLIED,
        ),
        (S.UNAVAILABLE, "failed to connect to all addresses; last error: ...", Verdict.NOT_APPLIED),
        (S.UNAVAILABLE, "etcdserver: no leader", Verdict.NOT_APPLIED),
        (S.RESOURCE_EXHAUSTED, "etcdserver: too many requests", Verdict.NOT_APPLIED),
        (S.UNAVAILABLE, "Stream removed (recvmsg:Connection reset by peer (104))", Verdict.UNKNOWN),
        (S.UNAVAILABLE, "etcdserver: request timed out", Verdict.UNKNOWN),
        (
            S.UNAVAILABLE,
            "etcdserver: request timed out, possibly due to previous leader failure",
            Verdict.UNKNOWN,
        ),
        (S.UNAVAILABLE, "etcdserver: leader changed", Verdict.UNKNOWN),
        (S.UNAVAILABLE, "etcdserver: server stopped", Verdict.UNKNOWN),
        (S.DEADLINE_EXCEEDED, "Deadline Exceeded", Verdict.UNKNOWN),
        (S.INTERNAL, "Received RST_STREAM", Verdict.UNKNOWN),
        (S.UNKNOWN, "", Verdict.UNKNOWN),
        (
            S.RESOURCE_EXHAUSTED,
            "CLIENT: Received message larger than max (70000000 vs. 67108864)",
            Verdict.UNKNOWN,
        ),
        (S.UNAUTHENTICATED, "etcdserver: invalid auth token", Verdict.TOKEN),
        (S.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", Verdict.TOKEN),
        (S.PERMISSION_DENIED, "etcdserver: permission denied", Verdict.FATAL),
        (S.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", Verdict.FATAL),
        (S.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", Verdict.FATAL),
        (S.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request", Verdict.FATAL),
    ],
)
def test_a_failed_rpc_is_judged_by_code_and_words(
    code: grpc.StatusCode, details: str, verdict: Verdict
) -> None:
    assert judge(code, details) is verdict


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (S.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", errors.Compacted),
        (S.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision", errors.FutureRevision),
        (S.PERMISSION_DENIED, "etcdserver: permission denied", errors.PermissionDenied),
        (S.INVALID_ARGUMENT, "etcdserver: user name is empty", errors.AuthenticationFailed),
        (
            S.INVALID_ARGUMENT,
            "etcdserver: authentication failed, invalid user ID or password",
            errors.AuthenticationFailed,
        ),
        (S.FAILED_PRECONDITION, "etcdserver: authentication is not enabled", errors.AuthenticationFailed),
        (S.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", errors.NoSpace),
        (S.INVALID_ARGUMENT, "etcdserver: request is too large", errors.TooLarge),
        (S.INVALID_ARGUMENT, "etcdserver: too many operations in txn request", errors.TooLarge),
        (
            S.RESOURCE_EXHAUSTED,
            "grpc: received message larger than max (3 vs. 2)",
            errors.TooLarge,
        ),
        (S.NOT_FOUND, "etcdserver: requested lease not found", errors.LeaseNotFound),
        (S.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request", errors.InvalidRequest),
        (S.UNIMPLEMENTED, "unknown service etcdserverpb.KV", errors.InvalidRequest),
    ],
)
def test_a_refusal_has_its_own_type_and_keeps_its_words(
    code: grpc.StatusCode, details: str, kind: type[errors.EtcdError]
) -> None:
    error = as_error(code, details)
    assert type(error) is kind
    assert str(error) == details
    assert not isinstance(error, errors.OutcomeUnknown)
