"""Uploads, removals and garbage collection in any order of their steps, killed, or stopped and late.

Everything is the product's own but the backend, etcd (both in memory) and the lease. Each request to either
is a step that an explorer lets happen, in an order drawn from a seed: a process that is held back in front of
a deletion, for as long as everything else takes, is one of these orders. Leases end at any moment, and nobody
notices.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import pytest
from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.errors import RemudaError
from remuda_core.etcd import ops
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.ids import ImageId
from remuda_core.images.chunks import CHUNK_BYTES, Digest, digest_of
from remuda_core.images.manifest import Manifest, serialize
from remuda_core.telemetry.metrics import Metrics
from remuda_core.testing.etcd_in_memory import InMemoryEtcd
from remuda_image_store import activation, blob_names, references, sweeping
from remuda_image_store.activation import Activation, Incomplete
from remuda_image_store.blob_names import Names, read_names
from remuda_image_store.blobs import Blob, Blobs
from remuda_image_store.content import Content, candidates, chunk_key, manifest_key
from remuda_image_store.records import Changed, Image, Records
from remuda_image_store.removal import Remover
from remuda_image_store.sweeping import Sweeper

KEYS = Keys("/r/")
GRACE = 100.0
A_MONTH = 31 * 24 * 3600.0
SHARD = "00"
MOST_STEPS = 4000

actor: ContextVar[str] = ContextVar("actor", default="")


def _in_shard(of: Callable[[int], bytes]) -> Iterator[tuple[int, Digest]]:
    """Numbers that give content of the one shard, so that a pass has few steps."""
    for number in range(1 << 20):
        digest = digest_of(of(number))
        if digest[0] == 0:
            yield number, digest


_numbers = _in_shard(lambda number: b"%d" % number)
CHUNKS = {digest: b"%d" % number for number, digest in (next(_numbers) for _ in range(3))}


def _manifest(digests: Sequence[Digest]) -> Manifest:
    def made(missing: int) -> Manifest:
        return Manifest(virtual_bytes=len(digests) * CHUNK_BYTES - missing, digests=tuple(digests))

    return made(next(_in_shard(lambda missing: serialize(made(missing))))[0])


X, Y, Z = CHUNKS
MANIFESTS = {"one": _manifest((X, Y)), "two": _manifest((X, Z)), "same as one": _manifest((X, Y))}


class Explorer:
    """Lets one waiting step happen after the other."""

    def __init__(self, seed: int, longest: int) -> None:
        self.random = random.Random(seed)
        self.waiting: list[tuple[str, asyncio.Future[None]]] = []
        self.dead: set[str] = set()
        self.trace: list[str] = []
        self.open = False
        """Steps happen at once: the end of a run, when nothing is to be chosen any more."""
        # One after the other, but whoever is at work after so many steps comes last from then
        # on: few changes find most of what an order can break (Burckhardt et al., ASPLOS 2010).
        self._changes = {self.random.randrange(longest) for _ in range(self.random.choice((1, 2, 3, 6)))}
        self._rank: dict[str, float] = {}
        self._steps = 0
        self._over = False

    async def step(self, name: str) -> None:
        if self._over:
            raise asyncio.CancelledError
        if self.open and actor.get() not in self.dead:
            return
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((actor.get(), future))
        await future
        self.trace.append(f"{actor.get()}: {name}")

    def end(self) -> None:
        """Who waits still is not even to clean up."""
        self._over = True
        for _, future in self.waiting:
            future.cancel()

    async def settle(self) -> None:
        quiet = 0
        while quiet < 8:
            before = len(self.waiting)
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self.waiting) == before else 0

    def choose(self) -> bool:
        """Whether there was a step left."""
        alive = [entry for entry in self.waiting if entry[0] not in self.dead]
        if not alive:
            return False
        for name, _ in alive:
            self._rank.setdefault(name, self.random.random())
        chosen = max(alive, key=lambda entry: self._rank[entry[0]])
        if self._steps in self._changes:
            self._rank[chosen[0]] = min(self._rank.values()) - 1
        self._steps += 1
        self.waiting.remove(chosen)
        chosen[1].set_result(None)
        return True


class MemoryBlobs:
    """Stands in for Blobs: a deletion takes effect when its step happens, however late."""

    def __init__(self, explorer: Explorer) -> None:
        self.blobs: dict[str, tuple[bytes, int]] = {}
        self._explorer = explorer
        self._version = 0

    async def put(self, key: str, data: bytes, *, head: bytes = b"", blind: bool = False) -> bool:
        del blind
        await self._explorer.step(f"put {key[:16]}")
        if key in self.blobs:
            return False
        self._version += 1
        self.blobs[key] = (head + data, self._version)
        return True

    async def get(self, key: str) -> bytes:
        await self._explorer.step(f"get {key[:16]}")
        if key not in self.blobs:
            raise FileNotFoundError(key)
        return self.blobs[key][0]

    async def exists(self, key: str) -> bool:
        return await self.size(key) is not None

    async def size(self, key: str) -> int | None:
        await self._explorer.step(f"head {key[:16]}")
        return len(self.blobs[key][0]) if key in self.blobs else None

    async def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            await self._explorer.step(f"delete {key}")
            self.blobs.pop(key, None)

    async def list(self, prefix: str) -> AsyncIterator[Blob]:
        await self._explorer.step(f"list {prefix}")
        for key, (data, version) in list(self.blobs.items()):
            if key.startswith(f"{prefix}/"):
                yield Blob(key, len(data), str(version))

    def drop_temporary(self, _: float) -> None:
        """There are none."""


class LateView:
    """What a replica knows of names: what it was told last, which may be long ago."""

    def __init__(self, etcd: InMemoryEtcd) -> None:
        self._etcd = etcd
        self._known = blob_names.NOTHING

    def now(self) -> Names:
        return self._known

    async def reach(self, revision: int) -> None:
        if self._known.revision < revision:
            self._known = await read_names(cast("Etcd", self._etcd), KEYS)

    async def look_up(self, name: str) -> str | None:
        kv = await self._etcd.get(KEYS.again(name))
        return None if kv is None else kv.value.decode()

    async def use_again(self, name: str, instead: str) -> None:
        await self.reach(await self._etcd.put(KEYS.again(name), instead.encode()))


@dataclass(kw_only=True)
class UnlockedShards:
    """A lease of which nobody knows whether it still stands."""

    shards: frozenset[str]
    epoch: int

    def fence(self, shard: str) -> ops.Compare:
        return ops.create_is(KEYS.gc_shard(shard), self.epoch)

    def check(self) -> None:
        """As one that was stopped right behind it."""


class World:
    def __init__(self, seed: int, *, small: bool = False) -> None:
        """`small`: one image and one sweeper, for whom everything is garbage that is about to go."""
        self.small = small
        self.explorer = Explorer(seed, 50 if small else 200)
        self.etcd = InMemoryEtcd(self.explorer.step)
        self.blobs = MemoryBlobs(self.explorer)
        self.now = time.time()
        self.acknowledged: set[ImageId] = set()
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            actor.set(name)
            await work

        self.tasks[name] = asyncio.create_task(run())

    def replica(self) -> tuple[Records, Content]:
        content = Content(cast("Blobs", self.blobs), LateView(self.etcd))
        return Records(cast("Etcd", self.etcd), KEYS), content

    # --- what replicas do ---

    async def upload(self, image: ImageId, manifest: Manifest, *, agent: bool) -> None:
        """`agent`: as CommitImage does, whose caller sends again what is lacking."""
        records, content = self.replica()

        async def put(lacking: Iterable[Digest]) -> None:
            for digest in sorted(lacking):
                await content.put_chunk(digest, CHUNKS[digest])

        found = await records.by_id(image)
        if found is None:
            return
        await put(manifest.lengths())
        digest = await content.put_manifest(manifest)

        def pend(record: Image) -> None:
            record.state, record.manifest_digest = Image.STATE_PENDING, digest.hex()

        try:
            pending = await records.change(found, pend)
            await self._activate(records, content, pending, manifest, put, agent=agent)
        except Changed:
            return
        self.acknowledged.add(image)

    async def _activate(
        self, records: Records, content: Content, pending: Any, manifest: Manifest, put: Any, *, agent: bool
    ) -> None:
        made = Activation(cast("Etcd", self.etcd), records, content)
        while True:
            try:
                await made.activate(pending, manifest, put_again=None if agent else put)
                return
            except Incomplete as incomplete:
                await put(incomplete.lacking)

    async def remove(self, image: ImageId) -> None:
        records, content = self.replica()
        found = await records.by_id(image)
        while found is not None and found.state != Image.STATE_DELETING:
            with suppress(Changed):
                await records.change(found, _delete)
            found = await records.by_id(image)
        self.acknowledged.discard(image)
        with suppress(Changed):
            await Remover(records, content).remove(image)

    async def sweep(self, holder: str, passes: int) -> None:
        records, content = self.replica()
        sweeper = self.sweeper(records, content, holder)
        for _ in range(passes):
            self.now += GRACE + 1
            try:
                await sweeper.sweep()
            except RemudaError as error:
                # The shard is another's; or a manifest is not there yet.
                self.explorer.trace.append(f"{holder}: {error}")

    def sweeper(self, records: Records, content: Content, holder: str) -> Sweeper:
        made = Sweeper(
            cast("Etcd", self.etcd),
            records,
            content,
            Metrics(),
            holder=holder,
            grace_seconds=GRACE,
            every_seconds=GRACE,
            on_lost=self.lost,
            clock=lambda: self.now,
        )
        made._locks = self.locks  # type: ignore[method-assign]
        return made

    def lost(self, digest: Digest) -> None:
        """Chunks of images that were removed meanwhile may look so."""

    @asynccontextmanager
    async def locks(self, due: Sequence[str]) -> AsyncIterator[UnlockedShards]:
        key = KEYS.gc_shard(SHARD)
        taken = await self.etcd.txn(compare=[ops.absent(key)], success=[ops.put(key, b"")])
        if SHARD not in due or not taken.succeeded:
            yield UnlockedShards(shards=frozenset(), epoch=0)
            return
        yield UnlockedShards(shards=frozenset({SHARD}), epoch=taken.revision)
        await self.etcd.txn(compare=[ops.create_is(key, taken.revision)], success=[ops.delete(key)])

    # --- what must hold ---

    def names(self) -> Names:
        entries = [
            (key, blob_names.decode(kv, KEYS), kv.mod_revision)
            for key, kv in self.etcd.keys.items()
            if key.startswith(KEYS.blob_names)
        ]
        return blob_names._names(KEYS, entries, self.etcd.revision)

    def images(self) -> dict[ImageId, Image]:
        return {
            ImageId(key.removeprefix(KEYS.images)): store_pb2.ImageRecord.FromString(kv.value).image
            for key, kv in self.etcd.keys.items()
            if key.startswith(KEYS.images)
        }

    def needed(self) -> set[str]:
        """Names of content that ACTIVE images have."""
        found: set[str] = set()
        for image in self.images().values():
            if image.state == Image.STATE_ACTIVE:
                digest = Digest(bytes.fromhex(image.manifest_digest))
                manifest = next(m for m in MANIFESTS.values() if digest_of(serialize(m)) == digest)
                found.add(manifest_key(digest))
                found.update(map(chunk_key, manifest.lengths()))
        return found

    def check(self) -> None:
        again = self.names().again
        for content in self.needed():
            there = content in self.blobs.blobs or again.get(content) in self.blobs.blobs
            assert there, f"{content} of an ACTIVE image is gone"

    def check_exact(self) -> None:
        """One blob for each content that is needed, and nothing else."""
        names = self.names()
        expected = {
            next(name for name in candidates(content, names) if name in self.blobs.blobs)
            for content in self.needed()
        }
        assert set(self.blobs.blobs) == expected


def _delete(image: Image) -> None:
    image.state = Image.STATE_DELETING


async def explore(seed: int, *, small: bool = False) -> None:
    """One run: all that happens, and what is left of it. Raises AssertionError with the last steps."""
    world = World(seed, small=small)
    explorer = world.explorer
    try:
        await _begin(world)
        await _interleave(world)
        await _finish(world)
    except Exception as error:
        raise AssertionError("\n".join([f"seed {seed}: {error!r}", *explorer.trace[-200:]])) from error
    finally:
        explorer.end()
        await asyncio.gather(*world.tasks.values(), return_exceptions=True)


async def explore_all(seeds: Iterable[int], *, small: bool = False) -> None:
    for seed in seeds:
        await explore(seed, small=small)


async def _begin(world: World) -> None:
    """Some of the images are there and deleted, so that there is garbage to be relied on."""
    rng = world.explorer.random
    for name in MANIFESTS:
        record = store_pb2.ImageRecord(id=name, project="p", image=Image(display_name=name))
        record.image.state = Image.STATE_UPLOADING
        world.etcd._apply([ops.put(KEYS.image(ImageId(name)), record.SerializeToString())], True)
    world.explorer.open = True
    if world.small or rng.random() < 0.8:
        await world.upload(ImageId("one"), MANIFESTS["one"], agent=False)
        if world.small or rng.random() < 0.7:
            await world.remove(ImageId("one"))
        await world.sweep("earlier", rng.choice((1, 1, 2)))
    world.explorer.open = False
    taking_part = ["same as one"] if world.small else rng.sample(sorted(MANIFESTS), rng.choice((1, 2, 3)))
    for name in taking_part:
        manifest = MANIFESTS[name]
        if ImageId(name) in world.images() and name not in world.acknowledged:
            world.start(f"upload {name}", world.upload(ImageId(name), manifest, agent=rng.random() < 0.5))
        if not world.small and rng.random() < 0.3:
            world.start(f"remove {name}", world.remove(ImageId(name)))
    for number in range(1 if world.small else rng.choice((1, 2, 2))):
        world.start(f"sweep {number}", world.sweep(f"sweep {number}", 1 if world.small else 4))


async def _interleave(world: World) -> None:
    explorer = world.explorer
    for _ in range(MOST_STEPS):
        await explorer.settle()
        for name, task in world.tasks.items():
            if task.done() and name not in explorer.dead:
                task.result()
        world.check()
        if explorer.random.random() < 0.004:
            explorer.dead.add(explorer.random.choice(list(world.tasks)))
        if explorer.random.random() < 0.02:
            world.etcd.keys.pop(KEYS.gc_shard(SHARD), None)
        if not explorer.choose():
            break
    else:
        raise AssertionError("it does not come to an end")


async def _finish(world: World) -> None:
    """Whoever was killed is gone; users remove what never became ACTIVE; garbage collection goes on."""
    explorer = world.explorer
    explorer.open = True
    assert all(image in world.images() for image in world.acknowledged)
    for image, record in world.images().items():
        if record.state != Image.STATE_ACTIVE:
            await world.remove(image)
    world.etcd.keys.pop(KEYS.gc_shard(SHARD), None)
    await world.sweep("last", 3)
    world.check()
    for content in {name.partition(".")[0] for name in world.blobs.blobs} - world.needed():
        # Only what a killed one may still remove is kept from others, and that goes as well.
        raise AssertionError(f"{content} stays")
    world.now += A_MONTH
    await world.sweep("last", 3)
    world.check_exact()


@pytest.fixture(autouse=True)
def in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    monkeypatch.setattr(asyncio, "to_thread", at_once)


@pytest.mark.parametrize("part", range(10))
async def test_no_active_image_ever_lacks_a_chunk_and_garbage_goes_in_the_end(part: int) -> None:
    await explore_all(range(part * 30, part * 30 + 30))


def _no_guard(keys: Keys, revision: int) -> ops.Compare:
    return ops.create_is(keys.all_doomed, 0)


def _forgets_dooms(keys: Keys, entries: Sequence[tuple[str, Any, int]], revision: int) -> Names:
    kept = [entry for entry in entries if not entry[0].startswith(keys.all_doomed)]
    return _names(keys, kept, revision)


async def _looks_first(
    etcd: Etcd, keys: Keys, blobs: Blobs, names: Sequence[str], still_free: Any, **rest: Any
) -> list[str]:
    """As a sweeper that relies on its lock: looks whether they are free, then removes them."""
    free = await still_free(await read_names(etcd, keys))

    async def as_before(_: Names) -> Any:
        return free

    return await remove_blobs(etcd, keys, blobs, sorted(free), as_before, **rest)


_names, remove_blobs = blob_names._names, blob_names.remove_blobs


PENDING_IS_NOTHING = (references, "_WITH_MANIFEST", (Image.STATE_ACTIVE, Image.STATE_DELETING))


@pytest.mark.parametrize(
    "changes",
    [
        # Either of these is enough: that PENDING counts keeps the sweeper from work that would be undone.
        [(activation, "nothing_doomed_since", _no_guard), PENDING_IS_NOTHING],
        [(blob_names, "_names", _forgets_dooms)],
        [(sweeping, "remove_blobs", _looks_first)],
    ],
    ids=["no comparison at the end", "dooms are not seen", "the look comes before the doom"],
)
async def test_the_explorer_finds_what_goes_wrong_without_each_part_of_the_protocol(
    monkeypatch: pytest.MonkeyPatch, changes: Sequence[tuple[Any, str, Any]]
) -> None:
    for module, name, instead in changes:
        monkeypatch.setattr(module, name, instead)
    with pytest.raises(AssertionError, match="of an ACTIVE image is gone"):
        await explore_all(range(5000), small=True)


async def test_an_image_that_is_pending_need_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*PENDING_IS_NOTHING)
    await explore_all(range(1000, 1100))
