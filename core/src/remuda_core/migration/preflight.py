"""What the rows of a preflight table mean together. Pure; scheduler and api say it in the same words."""

from collections.abc import Iterable, Iterator, Sequence

from remuda.compute.v1.moving_pb2 import MigrationCandidate, MigrationCheck

from remuda_core.errors import Reason, RemudaError, Violation

_BAD_FIRST = (
    MigrationCheck.VERDICT_FAIL,
    MigrationCheck.VERDICT_UNKNOWN,
    MigrationCheck.VERDICT_WARN,
)
REFUSING = frozenset({MigrationCheck.VERDICT_FAIL, MigrationCheck.VERDICT_UNKNOWN})
"""What is not known to hold is no ground to touch a guest on."""


def worst(checks: Iterable[MigrationCheck]) -> "MigrationCheck.Verdict.ValueType":
    """PASS, WARN, UNKNOWN or FAIL, the last being the worst; what does not apply does not count."""
    seen = {check.verdict for check in checks}
    return next((verdict for verdict in _BAD_FIRST if verdict in seen), MigrationCheck.VERDICT_PASS)


def passed(candidate: MigrationCandidate) -> bool:
    """The instance may be moved there."""
    return candidate.probed and candidate.verdict not in REFUSING


def refusals(candidate: MigrationCandidate) -> Iterator[MigrationCheck]:
    """The rows for which it was refused."""
    return (check for check in candidate.checks if check.verdict in REFUSING)


def preflight_failed(candidates: Sequence[MigrationCandidate]) -> RemudaError:
    """PREFLIGHT_FAILED with one violation per row that refuses; `subject` is hosts/{uuid}/{condition}.

    The message names no host: it also goes into the instance's events, which its owner reads.
    """
    refused = [(one, check) for one in candidates for check in refusals(one)]
    conditions = ", ".join(dict.fromkeys(condition_name(check) for _, check in refused))
    tested = "the target" if len(candidates) == 1 else f"each of {len(candidates)} hosts"
    return RemudaError(
        Reason.PREFLIGHT_FAILED,
        f"nothing was touched: {tested} is refused by preflight ({conditions or 'none was probed'})",
        metadata={
            one.host: ", ".join(condition_name(check) for check in refusals(one)) for one in candidates
        },
        violations=[
            Violation(f"{one.host}/{condition_name(check)}", f"{one.display_name}: {explanation(check)}")
            for one, check in refused
        ],
    )


def without_hosts(error: RemudaError) -> RemudaError:
    """What an owner is told of it: which conditions refuse. All else speaks of addresses, pools, versions."""
    if error.reason is not Reason.PREFLIGHT_FAILED:
        return error
    conditions = dict.fromkeys(violation.subject.rpartition("/")[2] for violation in error.violations)
    return RemudaError(
        error.reason,
        error.message,
        violations=[Violation(condition, "It does not hold.") for condition in conditions],
    )


def condition_name(check: MigrationCheck) -> str:
    """For example "STORAGE"."""
    return MigrationCheck.Condition.Name(check.condition).removeprefix("CONDITION_")


def explanation(check: MigrationCheck) -> str:
    """What was seen, what is needed and how to repair it, in one line."""
    verdict = MigrationCheck.Verdict.Name(check.verdict).removeprefix("VERDICT_")
    seen = [
        f"{side}: {words}"
        for side, words in (("source", check.observed_source), ("target", check.observed_target))
        if words
    ]
    parts = [
        f"{verdict}: {'; '.join(seen)}",
        f"required: {check.required}" if check.required else "",
        f"fix: {check.fix}" if check.fix else "",
    ]
    return ". ".join(part for part in parts if part).rstrip(". ") + "."
