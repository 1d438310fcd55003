"""The registry of reasons, and the exception."""

import pytest
from grpc import StatusCode
from remuda_core import errors
from remuda_core.errors import REASONS, Reason, RemudaError


def test_every_reason_has_one_row_and_a_value_equal_to_its_name() -> None:
    assert set(REASONS) == set(Reason)
    assert all(reason.value == reason.name for reason in Reason)


def test_every_meaning_is_one_sentence_and_never_ok() -> None:
    for meaning in REASONS.values():
        assert meaning.text.endswith(".")
        assert "\n" not in meaning.text
        assert meaning.code is not StatusCode.OK


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("projects/demo/instances/web", Reason.INSTANCE_NOT_FOUND),
        ("hosts/h1", Reason.HOST_NOT_FOUND),
        ("projects/demo/images/a", Reason.IMAGE_NOT_FOUND),
        ("flavors/small", Reason.FLAVOR_NOT_FOUND),
        ("networks/lan", Reason.NETWORK_NOT_FOUND),
        ("operations/1", Reason.OPERATION_NOT_FOUND),
        ("projects/demo/instances/web/migrations/1", Reason.MIGRATION_NOT_FOUND),
    ],
)
def test_what_is_missing_follows_from_its_name(name: str, reason: Reason) -> None:
    error = errors.not_found(name)
    assert (error.reason, error.resource, error.code) == (reason, name, StatusCode.NOT_FOUND)


def test_something_without_a_collection_cannot_be_missing() -> None:
    with pytest.raises(ValueError, match="no name of a resource"):
        errors.not_found("web")


def test_an_error_shows_its_reason_and_its_sentence() -> None:
    error = errors.instance_busy("projects/demo/instances/web", "operations/1")
    assert str(error) == "INSTANCE_BUSY: operations/1 holds projects/demo/instances/web"
    assert error.metadata["operation"] == "operations/1"
    assert error.code is StatusCode.ABORTED


def test_a_standby_that_knows_no_leader_says_so_and_when_to_ask_again() -> None:
    assert errors.not_leader(endpoint="10.0.0.2:7444", epoch=7).metadata == {
        "endpoint": "10.0.0.2:7444",
        "epoch": "7",
    }
    nobody = errors.not_leader(endpoint="", epoch=0)
    assert (nobody.reason, nobody.retry_after_seconds) == (Reason.NO_LEADER, 1.0)


def test_a_changed_resource_shows_its_etag() -> None:
    error = errors.etag_mismatch("flavors/small", given="1", current="2")
    assert (error.reason, error.metadata["etag"]) == (Reason.ETAG_MISMATCH, "2")
    assert errors.already_exists("flavors/small").reason is Reason.ALREADY_EXISTS


def test_metadata_is_a_copy() -> None:
    facts = {"a": "1"}
    error = RemudaError(Reason.INTERNAL, "x", metadata=facts)
    facts["a"] = "2"
    assert error.metadata == {"a": "1"}
