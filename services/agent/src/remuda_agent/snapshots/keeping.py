"""What is kept beside a disk of its last snapshot: one file, a line of JSON and then the manifest.

    snapshot.last        the last one that was read to its end: a repeated order commits it again
    snapshot.checkpoint  the last one made with a checkpoint: what has not changed since is as it says

Both go with the disk, and are never copied: what they say holds for these bytes only.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog
from google.protobuf.message import DecodeError
from remuda.image.v1.source_pb2 import ImageSource, TransferCounts
from remuda_core.images.chunks import Digest, digest_of
from remuda_core.images.disk import sync_directory
from remuda_core.images.manifest import Manifest, parse, serialize

_log = structlog.get_logger(__name__)

LAST = "snapshot.last"
CHECKPOINT = "snapshot.checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A disk's content at one moment. `checkpoint`: the hypervisor's name of that moment; empty: none."""

    image_id: str
    manifest: Manifest
    consistency: ImageSource.Consistency.ValueType
    time: datetime
    counts: TransferCounts
    checkpoint: str = ""


def keep(path: Path, kept: Kept) -> None:
    """Durable when it returns. Blocking."""
    blob = serialize(kept.manifest)
    words = {
        "image": kept.image_id,
        "manifest": digest_of(blob).hex(),
        "consistency": kept.consistency,
        "time": kept.time.isoformat(),
        "counts": kept.counts.SerializeToString().hex(),
        "checkpoint": kept.checkpoint,
    }
    draft = path.with_name(f"{path.name}.new")
    with draft.open("wb") as file:
        file.write(json.dumps(words).encode() + b"\n" + blob)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_directory(path.parent)


def kept(path: Path) -> Kept | None:
    """None: there is none, or it is damaged; either way the disk itself can be read again. Blocking."""
    try:
        words, _, blob = path.read_bytes().partition(b"\n")
        raw = json.loads(words)
        return Kept(
            image_id=raw["image"],
            manifest=parse(blob, Digest(bytes.fromhex(raw["manifest"]))),
            consistency=ImageSource.Consistency.ValueType(raw["consistency"]),
            time=datetime.fromisoformat(raw["time"]),
            counts=TransferCounts.FromString(bytes.fromhex(raw["counts"])),
            checkpoint=raw["checkpoint"],
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, DecodeError) as error:
        _log.warning("what was kept of a snapshot cannot be used", path=str(path), error=repr(error))
        return None
