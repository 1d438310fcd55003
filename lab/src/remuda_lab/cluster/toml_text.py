"""Writes TOML: the standard library only reads it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

Plain: TypeAlias = str | int | float | bool | Path
Value: TypeAlias = "Plain | Sequence[Value] | Mapping[str, Value]"


def render(settings: Mapping[str, Value]) -> str:
    """One document. Nested mappings become inline tables below the first level, which TOML reads the same."""
    plain = [f"{key} = {_value(value)}" for key, value in settings.items() if not isinstance(value, Mapping)]
    for key, value in settings.items():
        if isinstance(value, Mapping):
            plain += ["", f"[{key}]", *(f"{_key(name)} = {_value(one)}" for name, one in value.items())]
    return "\n".join(plain) + "\n"


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name)


def _value(value: Value) -> str:
    match value:
        case Mapping():
            return "{ " + ", ".join(f"{_key(key)} = {_value(one)}" for key, one in value.items()) + " }"
        case str() | Path():
            # A JSON string of ASCII is a basic string of TOML.
            return json.dumps(str(value))
        case bool() | int() | float():
            return json.dumps(value)
        case _:
            return "[" + ", ".join(_value(one) for one in value) + "]"
