"""What became of a command to a migration, in words. Pure."""

from remuda.compute.v1 import migration_pb2

from remuda_cli.output.words import enum_word

Result = migration_pb2.CommandResult

_EFFECTS = {
    Result.EFFECT_APPLIED: "applied",
    Result.EFFECT_DEFERRED_TO_MEMORY_PHASE: "accepted, and counts from the memory phase on",
    Result.EFFECT_NOT_EFFECTIVE: "taken by libvirt, but the copy does not follow it",
    Result.EFFECT_REFUSED: "refused, nothing was changed",
}
_DONE = (Result.EFFECT_APPLIED, Result.EFFECT_DEFERRED_TO_MEMORY_PHASE)


def took_effect(result: Result) -> bool:
    return result.effect in _DONE


def result_line(command: str, result: Result) -> str:
    """`set-bandwidth: applied (MEMORY): 1.9 MiB/s are sent`."""
    effect = _EFFECTS.get(result.effect, enum_word(result, "effect").lower() or "answered")
    phase = enum_word(result, "phase")
    text = result.observed or result.error.message
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return f"{command}: {effect}" + (f" ({phase})" if phase else "") + (f": {printable}" if printable else "")


def command_word(request: migration_pb2.ControlMigrationRequest) -> str:
    """As the verb of the command line."""
    return (request.WhichOneof("command") or "").replace("_", "-")
