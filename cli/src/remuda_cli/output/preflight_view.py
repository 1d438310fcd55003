"""Where an instance can go, at a glance: a line per host, then whatever is not as it should be. Pure."""

from collections.abc import Iterator, Sequence

from remuda.compute.v1.moving_pb2 import CheckMigrationResponse, MigrationCandidate, MigrationCheck
from remuda_core.migration.preflight import passed

from remuda_cli.output.table import Label, aligned
from remuda_cli.output.units import human_seconds
from remuda_cli.output.words import enum_word

HOSTS_SHOWN = 12
"""-o wide shows all."""

_WORDS = {
    MigrationCheck.VERDICT_PASS: "ok",
    MigrationCheck.VERDICT_WARN: "WARN",
    MigrationCheck.VERDICT_FAIL: "FAIL",
    MigrationCheck.VERDICT_UNKNOWN: "UNKNOWN",
    MigrationCheck.VERDICT_NOT_APPLICABLE: "n/a",
}
_WORST_FIRST = (
    MigrationCheck.VERDICT_FAIL,
    MigrationCheck.VERDICT_UNKNOWN,
    MigrationCheck.VERDICT_WARN,
)


def preflight_lines(
    checked: CheckMigrationResponse, instance: str, label: Label, *, wide: bool = False
) -> list[str]:
    """`wide`: every host, every condition, and what was seen where all is well too."""
    named = [(_host(one, index, label), one) for index, one in enumerate(checked.candidates, start=1)]
    shown = named if wide else named[:HOSTS_SHOWN]
    lines = [summary(checked, instance, label)]
    if shown:
        lines += ["", *_hosts(shown)]
    if len(shown) < len(named):
        lines.append(f"and {len(named) - len(shown)} more hosts (-o wide has all)")
    if shown and wide:
        lines += ["", *_conditions(shown)]
    return lines + _reasons(shown, wide=wide)


def candidate_lines(candidate: MigrationCandidate, label: Label) -> list[str]:
    """One host, as it was seen for an operation."""
    named = [(_host(candidate, 1, label), candidate)]
    return _hosts(named) + _reasons(named, wide=False)


def fit_hosts(checked: CheckMigrationResponse, label: Label) -> list[str]:
    """The hosts that it can go to, the best first, as people call them."""
    return [_host(one, index, label) for index, one in enumerate(checked.candidates, start=1) if passed(one)]


def summary(checked: CheckMigrationResponse, instance: str, label: Label) -> str:
    source = f" from {label(checked.source_host)}" if checked.source_host else ""
    fit = [
        f"{_host(one, index, label)}{_expected(one)}"
        for index, one in enumerate(checked.candidates, start=1)
        if passed(one)
    ]
    if fit:
        return f"{instance} can move{source} to {', '.join(fit)}"
    if len(checked.candidates) == 1:
        (only,) = checked.candidates
        return f"{instance} cannot move{source} to {_host(only, 1, label)}: {_troubles(only) or 'not probed'}"
    return f"{instance} cannot move{source}: none of {len(checked.candidates)} hosts is fit"


def refusal_lines(details: Sequence[str]) -> list[str]:
    """PREFLIGHT_FAILED's violations as `preflight_lines` shows a check. They are
    `hosts/{uuid}/{CONDITION}: {host}: {VERDICT}: {what was seen}. required: .... fix: ...`. Others stay as
    they are.
    """
    lines: list[str] = []
    for detail in details:
        parts = detail.split(": ", 3)
        subject = parts[0]
        if not subject.startswith("hosts/") or len(parts) < len(("subject", "host", "verdict", "text")):
            lines.append(detail)
            continue
        _, host, verdict, text = parts
        text, _, fix = text.partition(". fix: ")
        seen, _, needed = text.partition(". required: ")
        lines.append(_headline(verdict, host, subject.rpartition("/")[2]))
        lines += [f"      seen:   {seen}"] if seen else []
        lines += [f"      needed: {needed}"] if needed else []
        lines += [f"      fix:    {fix}"] if fix else []
    return lines


def _hosts(named: Sequence[tuple[str, MigrationCandidate]]) -> list[str]:
    """A row per host, in the order of the answer: the best first."""
    rows = [["HOST", "VERDICT", "HOW", "TAKES", "WHY"]]
    rows += [
        [
            host,
            _verdict(one),
            enum_word(one, "kind").removeprefix("LIVE_").lower() or "-",
            _seconds(one) or "-",
            _troubles(one) or "-",
        ]
        for host, one in named
    ]
    return aligned(rows)


def _reasons(named: Sequence[tuple[str, MigrationCandidate]], *, wide: bool) -> list[str]:
    lines: list[str] = []
    for host, check in _told(named, wide=wide):
        lines += ["", *_explained(host, check)]
    if not wide and (holding := _holding(named)):
        lines += ["", f"ok wherever it was checked: {', '.join(holding)}"]
    return lines


def _troubles(candidate: MigrationCandidate) -> str:
    """For example "STORAGE, NETWORK; WARN CONVERGENCE": what the verdict rests on, then what is less bad."""
    groups: list[str] = []
    for verdict in _WORST_FIRST:
        found = [_condition(check.condition) for check in candidate.checks if check.verdict == verdict]
        if found:
            groups.append(f"{_WORDS[verdict]} {', '.join(found)}" if groups else ", ".join(found))
    return "; ".join(groups)


def _holding(named: Sequence[tuple[str, MigrationCandidate]]) -> list[str]:
    """Conditions that somebody looked at, and that nobody has anything to say against."""
    every = [check for _, one in named for check in one.checks]
    told = {check.condition for check in every if check.verdict in _WORST_FIRST}
    good = {check.condition for check in every if check.verdict == MigrationCheck.VERDICT_PASS}
    return [_condition(condition) for condition in sorted(good - told)]


def _conditions(named: Sequence[tuple[str, MigrationCandidate]]) -> list[str]:
    """A row per condition, the worst first: what is to be done stands at the top."""
    by_host = [{check.condition: check for check in one.checks} for _, one in named]
    conditions = sorted({condition for checks in by_host for condition in checks})

    def badness(condition: "MigrationCheck.Condition.ValueType") -> int:
        seen = {checks[condition].verdict for checks in by_host if condition in checks}
        return next((rank for rank, verdict in enumerate(_WORST_FIRST) if verdict in seen), len(_WORST_FIRST))

    rows = [["CONDITION", *(host for host, _ in named)]]
    rows += [
        [_condition(condition), *(_word(checks.get(condition)) for checks in by_host)]
        for condition in sorted(conditions, key=lambda one: (badness(one), one))
    ]
    return aligned(rows)


def _word(check: MigrationCheck | None) -> str:
    return "-" if check is None else _WORDS.get(check.verdict, "?")


def _verdict(candidate: MigrationCandidate) -> str:
    """A host that is only not refused yet is no host to go to."""
    word = _WORDS.get(candidate.verdict, "?")
    return word if candidate.probed or not word.islower() else "not probed"


def _told(
    named: Sequence[tuple[str, MigrationCandidate]], *, wide: bool
) -> Iterator[tuple[str, MigrationCheck]]:
    wanted = (*_WORST_FIRST, MigrationCheck.VERDICT_PASS) if wide else _WORST_FIRST
    for verdict in wanted:
        for host, candidate in named:
            for check in candidate.checks:
                # A caller who may not see hosts is told verdicts and nothing that could be explained.
                if check.verdict == verdict and (check.observed_source or check.observed_target or check.fix):
                    yield host, check


def _explained(host: str, check: MigrationCheck) -> list[str]:
    took = f"  ({check.duration_ms} ms)" if check.duration_ms else ""
    lines = [_headline(_WORDS[check.verdict], host, _condition(check.condition)) + took]
    for name, text in (
        ("source:", check.observed_source),
        ("target:", check.observed_target),
        ("needed:", check.required),
        ("fix:   ", check.fix),
    ):
        if text:
            lines.append(f"      {name} {_printable(text)}")
    return lines


def _headline(verdict: str, host: str, condition: str) -> str:
    return f"{verdict}  {host}  {condition}"


def _condition(condition: "MigrationCheck.Condition.ValueType | int") -> str:
    known = MigrationCheck.Condition.DESCRIPTOR.values_by_number.get(int(condition))
    return known.name.removeprefix("CONDITION_") if known else f"condition {int(condition)}"


def _expected(candidate: MigrationCandidate) -> str:
    took = _seconds(candidate)
    return f" (about {took})" if took else ""


def _seconds(candidate: MigrationCandidate) -> str:
    if not candidate.HasField("expected_duration"):
        return ""
    return human_seconds(candidate.expected_duration.ToTimedelta().total_seconds())


def _host(candidate: MigrationCandidate, position: int, label: Label) -> str:
    """Owners are not told how hosts are called."""
    return candidate.display_name or (label(candidate.host) if candidate.host else f"#{position}")


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
