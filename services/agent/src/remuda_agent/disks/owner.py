"""owner.json: who may touch an instance's directory; see "What an agent keeps" in the durability design."""

from __future__ import annotations

import json
import os
from pathlib import Path

from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import Epoch, HostId, InstanceId, OperationId
from remuda_core.images.disk import sync_directory

from remuda_agent.steps.ports import Owner

OWNER_FILE = "owner.json"


def read_owner(directory: Path) -> Owner | None:
    """None: no such directory, or nothing was begun in it. Raises STEP_FAILED for a damaged record, which
    is never taken for "nobody's".
    """
    path = directory / OWNER_FILE
    try:
        raw = json.loads(path.read_text())
        return Owner(
            instance_id=InstanceId(raw["instance"]),
            host_id=HostId(raw["host"]),
            epoch=Epoch(int(raw["epoch"])),
            operation_id=OperationId(raw["operation"]),
            role="owner" if raw["role"] == "owner" else "incoming",
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise RemudaError(Reason.STEP_FAILED, f"{path} is damaged: {error!r}") from error


def write_owner(directory: Path, owner: Owner) -> None:
    """Durable when it returns: the file, its name, and the directory's name in the pool."""
    draft = directory / f"{OWNER_FILE}.{owner.host_id}"
    with draft.open("w") as file:
        json.dump(
            {
                "instance": owner.instance_id,
                "host": owner.host_id,
                "epoch": owner.epoch,
                "operation": owner.operation_id,
                "role": owner.role,
            },
            file,
        )
        file.flush()
        os.fsync(file.fileno())
    draft.replace(directory / OWNER_FILE)
    sync_directory(directory)
    sync_directory(directory.parent)


def refuse_newer(found: Owner, asking: Owner) -> None:
    """Raises STALE_EPOCH when the record is of a later placement than the one that asks."""
    if found.epoch > asking.epoch:
        raise RemudaError(
            Reason.STALE_EPOCH,
            f"the directory of {found.instance_id} belongs to epoch {found.epoch}, the order is for"
            f" {asking.epoch}",
            metadata={"epoch": str(found.epoch), "host": found.host_id},
        )
