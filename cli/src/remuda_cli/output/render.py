"""Messages to lines of text, by format. Pure."""

import json
from collections.abc import Sequence
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as _error_details

from remuda_cli.output.columns import columns_of
from remuda_cli.output.formats import Format
from remuda_cli.output.operation_view import operation_lines
from remuda_cli.output.table import Label, chosen, table
from remuda_cli.output.words import describe

# JSON of an Operation that failed needs the types inside its status, which nothing else imports.
_NEEDED = (_error_details.ErrorInfo,)


def as_dict(message: Message) -> dict[str, Any]:
    """Protobuf's own JSON mapping (what `buf curl` prints too), with the fields that are zero."""
    shown: dict[str, Any] = MessageToDict(message, always_print_fields_with_no_presence=True)
    return shown


def ndjson(message: Message) -> str:
    return json.dumps(as_dict(message), separators=(",", ":"), ensure_ascii=False)


def one(message: Message, form: Format, label: Label) -> list[str]:
    """A single resource."""
    match form:
        case Format.JSON:
            return json.dumps(as_dict(message), indent=2, ensure_ascii=False).splitlines()
        case Format.YAML:
            return _yaml(as_dict(message))
        case Format.NAME:
            return [_name(message)]
        case Format.TABLE if isinstance(message, operations_pb2.Operation):
            return operation_lines(message, label)
        case Format.TABLE | Format.WIDE:
            return describe(message, label)


def many(kind: type[Message], messages: Sequence[Message], form: Format, label: Label) -> list[str]:
    """A list; JSON is an array."""
    match form:
        case Format.JSON:
            return json.dumps([as_dict(m) for m in messages], indent=2, ensure_ascii=False).splitlines()
        case Format.YAML:
            return _yaml([as_dict(m) for m in messages])
        case Format.NAME:
            return [_name(m) for m in messages]
        case Format.TABLE | Format.WIDE:
            return table(chosen(columns_of(kind), wide=form is Format.WIDE), messages, label)


def _name(message: Any) -> str:
    for field in ("name", "action", "sequence", "host"):
        if field in message.DESCRIPTOR.fields_by_name:
            return str(getattr(message, field))
    return str(message.DESCRIPTOR.name)


def _yaml(value: Any) -> list[str]:
    import yaml

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).splitlines()
