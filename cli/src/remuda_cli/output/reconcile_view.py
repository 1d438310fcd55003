"""A reconcile report at a glance: what the record says, what was found, what is done about it. Pure."""

from collections.abc import Iterator

from remuda.compute.v1.reconcile_pb2 import ReconcileReport, Repair

from remuda_cli.output.table import Label, aligned
from remuda_cli.output.words import enum_word


def reconcile_lines(report: ReconcileReport, label: Label) -> list[str]:
    lines = [f"intended: {_printable(report.intended)}", "", *_found(report, label), ""]
    if report.silent_hosts:
        silent = ", ".join(label(host) for host in report.silent_hosts)
        lines += [f"no answer: {silent}; what they have is not known", ""]
    if not report.repairs:
        return [*lines, "nothing to repair"]
    for repair in report.repairs:
        lines += _repair(repair, label)
    return lines


def unsolved(report: ReconcileReport) -> int:
    """How many repairs a person has to see to."""
    return sum(repair.action == Repair.ACTION_ASK_OPERATOR or bool(repair.error) for repair in report.repairs)


def _found(report: ReconcileReport, label: Label) -> list[str]:
    if not report.found:
        return ["found:    nothing on any host"]
    rows = [["HOST", "RECORD", "EPOCH", "DOMAIN", "FILES"]]
    rows += [
        [
            label(copy.host),
            "this" if copy.on_record else "-",
            str(copy.epoch or "-"),
            _printable(copy.domain) or "-",
            _printable(copy.files) or "-",
        ]
        for copy in report.found
    ]
    return aligned(rows)


def _repair(repair: Repair, label: Label) -> Iterator[str]:
    word = enum_word(repair, "action")
    where = f"  {label(repair.host)}" if repair.host else ""
    if repair.error:
        state = "REFUSED"
    elif repair.done:
        state = "done"
    else:
        state = "to do"
    yield f"{state:<7}  {word}{where}"
    yield f"         {_printable(repair.reason)}"
    if repair.error:
        yield f"         {_printable(repair.error)}"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
