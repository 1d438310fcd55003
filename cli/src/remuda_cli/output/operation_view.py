"""One operation on one screen: what, how it went, what was done where and for how long. Pure."""

from google.longrunning import operations_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from remuda.compute.v1 import operation_pb2

from remuda_cli.output.columns import columns_of, operation_metadata
from remuda_cli.output.preflight_view import candidate_lines
from remuda_cli.output.table import Column, Label, chosen, table
from remuda_cli.output.units import human_ms
from remuda_cli.output.words import describe, enum_word, moment


def operation_lines(operation: operations_pb2.Operation, label: Label) -> list[str]:
    """For people; -o wide, json and yaml have every field."""
    metadata = operation_metadata(operation)
    if not metadata.action:
        return describe(operation, label)
    shown = operation_pb2.OperationMetadata()
    shown.CopyFrom(metadata)
    # Steps, placement and preflight have tables of their own below.
    shown.ClearField("steps")
    shown.ClearField("preflight")
    shown.placement.ClearField("hosts")
    if not shown.placement.ListFields():
        shown.ClearField("placement")
    lines = [f"name: {operation.name}", *describe(shown, label)]
    if operation.HasField("error"):
        failure = operations_pb2.Operation(error=operation.error)
        lines += describe(failure, label)
    if metadata.steps:
        lines += ["", *table(_steps(metadata), metadata.steps, label)]
    if metadata.placement.hosts:
        verdicts = chosen(columns_of(operation_pb2.HostVerdict), wide=False)
        lines += ["", *table(verdicts, metadata.placement.hosts, label)]
    if metadata.preflight.checks:
        lines += ["", *candidate_lines(metadata.preflight, label)]
    return lines


def _steps(metadata: operation_pb2.OperationMetadata) -> list[Column]:
    begun = _ms(metadata.create_time)
    failed = any(step.HasField("error") for step in metadata.steps)
    return [
        Column("STEP", lambda step, _: step.name),
        Column("STATE", lambda step, _: enum_word(step, "state")),
        Column("HOST", lambda step, label: label(step.host) if step.host else ""),
        Column(
            "AFTER",
            lambda step, _: human_ms(_ms(step.start_time) - begun) if step.HasField("start_time") else "",
        ),
        Column(
            "TOOK",
            lambda step, _: (
                human_ms(_ms(step.end_time) - _ms(step.start_time)) if step.HasField("end_time") else ""
            ),
        ),
        *((Column("ERROR", lambda step, _: step.error.message),) if failed else ()),
    ]


def _ms(stamp: Timestamp) -> float:
    return moment(stamp).timestamp() * 1000
