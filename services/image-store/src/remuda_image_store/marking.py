"""What a pass of garbage collection over a shard decides. Pure: listings, marks and time in, a verdict out.

A blob that nothing needs is marked, and is due when a pass finds it marked for a grace, and the same blob
still. Whatever is needed again, or was put anew, loses its mark. The clocks of the replicas that follow each
other on a shard bend the grace only: what makes removing safe is in blob_names.py.
"""

from collections.abc import Iterable, Set
from dataclasses import dataclass

from remuda_core.images.chunks import Digest

from remuda_image_store.blob_names import Names
from remuda_image_store.content import CHUNKS, MANIFESTS

SHARDS = tuple(f"{number:02x}" for number in range(256))


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A blob of the shard."""

    name: str
    version: str
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    name: str
    version: str
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    marks: tuple[Mark, ...]
    """All that are marked now, with those that are due."""
    due: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """Content that something refers to."""

    chunks: Set[Digest]
    manifests: Set[Digest]

    def has(self, name: str) -> bool:
        """`name`: of a blob, or of content."""
        kind, digest = parse_name(name)
        return digest in (self.chunks if kind == CHUNKS else self.manifests)


def parse_name(name: str) -> tuple[str, Digest | None]:
    """Kind and digest of a blob; None: it is none of the store's."""
    kind = CHUNKS if name.startswith(CHUNKS) else MANIFESTS
    try:
        return kind, Digest(bytes.fromhex(content_name(name).rpartition("/")[2]))
    except ValueError:
        return kind, None


def content_name(name: str) -> str:
    """Of the content that a blob holds: a blob that had to get another name has a dot and more behind it."""
    return name.partition(".")[0]


def unneeded(listed: Iterable[str], needed: Needed, names: Names) -> set[str]:
    """Blobs of a shard that may go: nothing refers to their content, or another blob stands for it."""
    present = set(listed)
    return {name for name in present if not needed.has(name) or _surplus(name, present, names)}


def _surplus(name: str, present: Set[str], names: Names) -> bool:
    used = chosen(content_name(name), present, names)
    return used is not None and used != name


def chosen(content: str, present: Set[str], names: Names) -> str | None:
    """The blob that stands for this content; None: nothing that may be relied on does."""
    instead = names.again.get(content)
    for name in (content, instead):
        if name is not None and name in present and name not in names.doomed:
            return name
    return None


def judge(
    listed: Iterable[Listed], free: Set[str], marks: Iterable[Mark], *, now: float, grace: float
) -> Verdict:
    """`free`: what is `unneeded` of `listed`; times in seconds."""
    before = {mark.name: mark for mark in marks}
    kept: list[Mark] = []
    due: list[str] = []
    for blob in sorted(listed, key=lambda blob: blob.name):
        if blob.name not in free:
            continue
        mark = before.get(blob.name)
        # A mark of the future is of a clock that was wrong.
        if mark is None or mark.version != blob.version or mark.since > now:
            mark = Mark(name=blob.name, version=blob.version, since=now)
        elif now - mark.since >= grace:
            due.append(blob.name)
        kept.append(mark)
    return Verdict(marks=tuple(kept), due=tuple(due))
