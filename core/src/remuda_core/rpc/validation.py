"""The rules that stand in the .proto files (buf.validate), applied to every message that arrives."""

import protovalidate
from google.protobuf.message import Message

from remuda_core.errors import Reason, RemudaError, Violation

_SHOWN = 20
"""An error travels in metadata, which is limited: more violations than this help nobody."""


class Validation:
    """Compiled rules; one per process is enough. About 10 microseconds a message."""

    def __init__(self) -> None:
        self._validator = protovalidate.Validator()

    def check(self, message: Message) -> None:
        """Raises RemudaError INVALID_ARGUMENT with a violation for each field that is wrong."""
        if not message.DESCRIPTOR.full_name.startswith("remuda."):
            return  # Other people's messages carry no rules of ours.
        found = [
            Violation(_path(violation.proto.field), violation.proto.message or violation.proto.rule_id)
            for violation in self._validator.collect_violations(message)
        ]
        if found:
            first = found[0]
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise RemudaError(
                Reason.INVALID_ARGUMENT,
                f"{first.subject}: {first.description}{more}",
                violations=found[:_SHOWN],
            )


def _path(field: protovalidate.FieldPathPb | None) -> str:
    """`instance.labels["a"]`, `networks[2]`: as AIP-193 writes field paths."""
    path = ""
    for element in field.elements if field is not None else ():
        path += ("." if path else "") + (element.field_name or "")
        subscript = element.subscript
        if subscript is not None:
            path += f'["{subscript.value}"]' if isinstance(subscript.value, str) else f"[{subscript.value}]"
    return path
