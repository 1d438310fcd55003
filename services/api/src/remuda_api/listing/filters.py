"""The filter grammar of the List rpcs: `field = value`, joined by AND.

    state = RUNNING AND host = "hosts/6f0c..." AND labels.tier = web

A small part of AIP-160, on purpose: what is accepted is answered exactly, everything else is refused with
FILTER_INVALID, so that nobody takes a filter that was not understood for a list of what is there.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from remuda_core.errors import Reason, RemudaError

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<quoted>"(?:[^"\\]|\\.)*")
      | (?P<equals>=)
      | (?P<word>[^\s="]+)
    )""",
    re.VERBOSE,
)
_MAX_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class Term:
    field: str
    value: str


@dataclass(frozen=True, slots=True)
class Filter:
    """Every term has to hold; without terms everything passes."""

    terms: tuple[Term, ...] = ()

    def holds(self, value_of: Callable[[str], str | None]) -> bool:
        """`value_of` gives a field of the candidate, None where it has none."""
        return all(value_of(term.field) == term.value for term in self.terms)


def parse_filter(text: str, fields: Collection[str]) -> Filter:
    """`fields` are the known ones; one that ends with "." stands for every key of a map.

    Raises RemudaError FILTER_INVALID.
    """
    if len(text) > _MAX_CHARACTERS:
        raise _invalid(f"longer than {_MAX_CHARACTERS} characters")
    tokens = list(_tokens(text))
    terms: list[Term] = []
    while tokens:
        if terms:
            joint = tokens.pop(0)
            if joint != ("word", "AND") or not tokens:
                raise _invalid(f"AND and another term are expected, not {joint[1]!r}")
        if len(tokens) < 3 or tokens[0][0] != "word" or tokens[1][0] != "equals" or tokens[2][0] == "equals":
            raise _invalid("a term is `field = value`")
        (_, field), _, (_, value) = tokens[:3]
        del tokens[:3]
        if not _known(field, fields):
            raise _invalid(f"there is no field {field!r}; fields: {', '.join(sorted(fields))}")
        terms.append(Term(field, value))
    return Filter(tuple(terms))


def _known(field: str, fields: Collection[str]) -> bool:
    group, dot, key = field.partition(".")
    return f"{group}." in fields and bool(key) if dot else field in fields


def _tokens(text: str) -> list[tuple[str, str]]:
    found = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise _invalid(f"cannot read on at {text[at : at + 20]!r}")
        value = match[match.lastgroup]
        if match.lastgroup == "quoted":
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        found.append((match.lastgroup, value))
        at = match.end()
    return found


def _invalid(why: str) -> RemudaError:
    return RemudaError(Reason.FILTER_INVALID, f"filter: {why}")
