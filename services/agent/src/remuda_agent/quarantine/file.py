"""The standing on disk: one JSON file, replaced as a whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

import structlog
from remuda_core.ids import Epoch, InstanceId
from remuda_core.images.disk import sync_directory

from remuda_agent.quarantine.standing import Standing

_log = structlog.get_logger(__name__)


def read(path: Path) -> Standing | None:
    """None: there is none. A damaged one is none either: everything is then confirmed anew by the leader."""
    try:
        raw = json.loads(path.read_text())
        return Standing(
            boot_id=str(raw["boot_id"]),
            confirmed=_epochs(raw["confirmed"]),
            released=_epochs(raw["released"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _log.error("the record of confirmed copies is damaged", path=str(path), error=repr(error))
        return None


def write(path: Path, standing: Standing) -> None:
    """Durable when it returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    with draft.open("w") as file:
        json.dump(
            {
                "boot_id": standing.boot_id,
                "confirmed": dict(standing.confirmed),
                "released": dict(standing.released),
            },
            file,
        )
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_directory(path.parent)


def _epochs(raw: dict[str, object]) -> dict[InstanceId, Epoch]:
    return {InstanceId(key): Epoch(int(str(value))) for key, value in raw.items()}
