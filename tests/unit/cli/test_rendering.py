"""Resources as text."""

import pytest
from google.longrunning import operations_pb2
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from remuda.compute.v1 import flavor_pb2, host_pb2, instance_pb2, migration_pb2, network_pb2, operation_pb2
from remuda.image.v1 import image_pb2
from remuda_cli.output.columns import columns_of
from remuda_cli.output.formats import Format
from remuda_cli.output.render import many, one
from remuda_cli.output.words import describe, enum_word
from remuda_core.errors import Reason, RemudaError
from remuda_core.rpc.status import to_status


def label(name: str) -> str:
    return {"hosts/a": "host1"}.get(name, name.rpartition("/")[2])


def test_columns_are_aligned_and_an_empty_list_shows_its_header() -> None:
    flavors = [
        flavor_pb2.Flavor(name="flavors/x", vcpus=1, memory_mib=512),
        flavor_pb2.Flavor(name="flavors/longer"),
    ]
    text = many(flavor_pb2.Flavor, flavors, Format.TABLE, label)
    assert text == [
        "NAME    VCPUS  MEMORY     DISK",
        "x       1      512.0 MiB  image",
        "longer  0      0 B        image",
    ]
    assert many(flavor_pb2.Flavor, [], Format.TABLE, label) == ["NAME  VCPUS  MEMORY  DISK"]


@pytest.mark.parametrize(
    "kind",
    [
        instance_pb2.Instance,
        host_pb2.Host,
        image_pb2.Image,
        flavor_pb2.Flavor,
        network_pb2.Network,
        operations_pb2.Operation,
        operation_pb2.HostVerdict,
        instance_pb2.AllowedAction,
    ],
)
def test_wide_shows_at_least_the_columns_of_table_and_an_empty_message_is_no_problem(
    kind: type[Message],
) -> None:
    narrow = many(kind, [kind()], Format.TABLE, label)
    wide = many(kind, [kind()], Format.WIDE, label)
    assert set(narrow[0].split()) <= set(wide[0].split())
    assert len(narrow) == len(wide) == 2
    assert len({column.header for column in columns_of(kind)}) == len(columns_of(kind))


def test_a_value_from_elsewhere_cannot_move_the_cursor() -> None:
    instance = instance_pb2.Instance(display_name="web", status_message="bad\x1b[2Jnews\n")
    for text in (
        many(instance_pb2.Instance, [instance], Format.WIDE, label),
        one(instance, Format.TABLE, label),
    ):
        assert "\x1b" not in "".join(text)
        assert any("bad?[2Jnews?" in line for line in text)


def test_a_description_follows_units_names_and_nesting() -> None:
    migration = migration_pb2.Migration(
        name="projects/p/instances/i/migrations/m",
        state=migration_pb2.Migration.STATE_DONE,
        kind=migration_pb2.Migration.KIND_LIVE_BLOCK,
        source_host="hosts/a",
        downtime_ms=41,
        memory_bytes=3 << 20,
        error=to_status(RemudaError(Reason.GUEST_STOPPED, "it stopped")),
        timeline=[
            migration_pb2.MigrationMilestone(type="SOURCE_PAUSED", host="hosts/a", time=Timestamp(seconds=1)),
            migration_pb2.MigrationMilestone(type="TARGET_RESUMED", host="hosts/b"),
        ],
    )
    text = describe(migration, label)
    assert "state:        DONE" in text
    assert "kind:         LIVE_BLOCK" in text
    assert "source_host:  host1 (hosts/a)" in text
    assert "downtime_ms:  41 ms" in text
    assert "memory_bytes: 3.0 MiB" in text
    assert "error:        GUEST_STOPPED: it stopped" in text
    at = text.index("timeline:")
    assert text[at + 1] == "  - type: SOURCE_PAUSED"
    assert text[at + 3].startswith("    time: 1970-01-01T00:00:01.000Z")
    assert text[at + 4] == "  - type: TARGET_RESUMED"


def test_a_measured_zero_is_shown_and_an_unknown_downtime_is_not() -> None:
    assert any("downtime_ms" in line for line in describe(migration_pb2.Migration(downtime_ms=0), label))
    assert not describe(migration_pb2.Migration(), label)


def test_what_an_operation_carries_is_unpacked() -> None:
    operation = operations_pb2.Operation(name="operations/x")
    operation.metadata.Pack(operation_pb2.OperationMetadata(action="StopInstance"))
    assert any("action: StopInstance" in line for line in describe(operation, label))


def test_an_operation_is_shown_with_its_steps_and_verdicts_as_tables() -> None:
    metadata = operation_pb2.OperationMetadata(
        action="LiveMigrateInstance",
        state=operation_pb2.OperationMetadata.STATE_FAILED,
        create_time=Timestamp(seconds=100),
        steps=[
            operation_pb2.OperationStep(
                name="target_prepared",
                state=operation_pb2.OperationStep.STATE_DONE,
                host="hosts/a",
                start_time=Timestamp(seconds=100, nanos=20_000_000),
                end_time=Timestamp(seconds=100, nanos=420_000_000),
            ),
            operation_pb2.OperationStep(
                name="guest_moved",
                state=operation_pb2.OperationStep.STATE_FAILED,
                start_time=Timestamp(seconds=102),
                error=to_status(RemudaError(Reason.GUEST_STOPPED, "it stopped")),
            ),
        ],
    )
    metadata.placement.considered = 1
    metadata.placement.hosts.add(display_name="host1", eligible=True, score=1.5)
    operation = operations_pb2.Operation(
        name="operations/x", done=True, error=to_status(RemudaError(Reason.GUEST_STOPPED, "it stopped"))
    )
    operation.metadata.Pack(metadata)
    text = one(operation, Format.TABLE, label)
    assert text[0] == "name: operations/x"
    assert "error: GUEST_STOPPED: it stopped" in text
    at = text.index("STEP             STATE   HOST   AFTER  TOOK    ERROR")
    assert text[at + 1].split() == ["target_prepared", "DONE", "host1", "20", "ms", "400", "ms", "-"]
    assert text[at + 2].split() == ["guest_moved", "FAILED", "-", "2.0", "s", "-", "it", "stopped"]
    assert text[-2:] == ["HOST   FITS  SCORE  FILTER  REASON", "host1  yes   1.500  -       -"]
    assert any("steps:" in line for line in one(operation, Format.WIDE, label))


def test_a_type_that_this_version_does_not_know_is_shown_as_it_is() -> None:
    operation = operations_pb2.Operation(
        metadata=any_pb2.Any(type_url="example.org/of.the.Future", value=b"123")
    )
    assert any("of.the.Future" in line for line in describe(operation, label))


def test_an_enum_value_that_this_version_does_not_know_is_its_number() -> None:
    future = instance_pb2.Instance.FromString(b"\x58\x63")  # field 11, state, value 99
    assert enum_word(future, "state") == "99"


def test_json_shows_what_is_zero_too() -> None:
    text = "\n".join(one(flavor_pb2.Flavor(name="flavors/x"), Format.JSON, label))
    assert '"diskGib": "0"' in text
