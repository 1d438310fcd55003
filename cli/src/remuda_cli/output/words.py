"""Protobuf values as people say them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from remuda_cli.output.table import Label
from remuda_cli.output.units import human_age, human_bytes, human_ms, human_seconds


def last_part(name: str) -> str:
    """`web` of `projects/demo/instances/web`."""
    return name.rpartition("/")[2]


def enum_word(message: Message, field: str) -> str:
    """`RUNNING` for STATE_RUNNING; the number for a value that this version does not know."""
    return _enum(message.DESCRIPTOR.fields_by_name[field], getattr(message, field))


def age(message: Message, field: str) -> str:
    return human_age(moment(getattr(message, field))) if message.HasField(field) else ""


def moment(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)


def describe(message: Message, label: Label, *, indent: int = 0) -> list[str]:
    """`key: value` lines of everything that is set; units follow from the fields' names."""
    pairs = [(field.name, list(_values(message, field, label))) for field, _ in message.ListFields()]
    width = max((len(name) for name, values in pairs if _short(values)), default=0)
    lines = []
    for name, values in pairs:
        if _short(values):
            lines.append(f"{' ' * indent}{(name + ':').ljust(width + 2)}{values[0][0]}")
            continue
        lines.append(f"{' ' * indent}{name}:")
        for value in values:
            first, rest = ("- ", "  ") if len(values) > 1 else ("", "")
            lines += [f"{' ' * (indent + 2)}{rest if i else first}{line}" for i, line in enumerate(value)]
    return lines


def _short(values: list[list[str]]) -> bool:
    return len(values) == 1 and len(values[0]) == 1


def _values(message: Message, field: Any, label: Label) -> Iterator[list[str]]:
    value: Any = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        kind = field.message_type.fields_by_name["value"]
        yield [f"{key}={_scalar(kind, item, label)}" for key, item in sorted(value.items())] or [""]
    elif field.is_repeated:
        if field.message_type is None:
            yield [", ".join(_scalar(field, item, label) for item in value)]
        else:
            for item in value:
                yield _message(item, label)
    elif field.message_type is not None:
        yield _message(value, label)
    else:
        yield [_scalar(field, value, label)]


def _message(value: Any, label: Label) -> list[str]:
    match value.DESCRIPTOR.full_name:
        case "google.protobuf.Timestamp":
            when = moment(value)
            return [
                f"{when.isoformat(timespec='milliseconds').replace('+00:00', 'Z')} ({human_age(when)} ago)"
            ]
        case "google.protobuf.Duration":
            return [human_seconds(value.ToTimedelta().total_seconds())]
        case "google.rpc.Status":
            return [f"{_status_reason(value)}: {value.message}"]
        case "google.protobuf.Any":
            return describe(_unpacked(value), label)
        case _:
            return describe(value, label) or ["-"]


def _unpacked(value: Any) -> Message:
    from google.protobuf import any_pb2, symbol_database

    packed: any_pb2.Any = value
    try:
        message = symbol_database.Default().GetSymbol(packed.TypeName())()
    except KeyError:
        return packed
    packed.Unpack(message)
    return message


def _status_reason(status: Any) -> str:
    from google.rpc import error_details_pb2

    info = error_details_pb2.ErrorInfo()
    found = next((info.reason for detail in status.details if detail.Unpack(info)), "")
    return found or f"code {status.code}"


def _scalar(field: Any, value: Any, label: Label) -> str:
    name = field.name
    if field.enum_type is not None:
        return _enum(field, value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, bytes):
        return human_bytes(len(value))
    if isinstance(value, str):
        text = "".join(c if c.isprintable() else "?" for c in value)
        named = label(text) if text.startswith("hosts/") and name != "name" else ""
        return f"{named} ({text})" if named and named != last_part(text) else text
    if name.endswith("_bytes"):
        return human_bytes(value)
    if name.endswith("_ms"):
        return human_ms(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _enum(field: Any, value: int) -> str:
    kind = field.enum_type
    known = kind.values_by_number.get(value)
    if known is None:
        return str(value)
    # The style guide prefixes every value with its enum's own name in upper snake.
    prefix = "".join(f"_{c}" if c.isupper() and i else c.upper() for i, c in enumerate(kind.name)) + "_"
    word = str(known.name).removeprefix(prefix)
    return "" if word == "UNSPECIFIED" else word
