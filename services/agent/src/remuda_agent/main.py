"""Console script `remuda-agent`: the object graph, top to bottom."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import grpc
import structlog
from remuda.agent.v1 import agent_pb2_grpc, migration_pb2_grpc, probe_pb2_grpc
from remuda.image.v1.chunk_pb2 import SignedGrant
from remuda.image.v1.chunk_pb2_grpc import ChunkServiceStub
from remuda_core.auth.caller import Kind
from remuda_core.config import ConfigError, load_or_exit
from remuda_core.ids import HostId, ImageId
from remuda_core.images.fetch import ImageFetcher
from remuda_core.images.upload import ChunkUploader
from remuda_core.rpc.channel import open_channel
from remuda_core.rpc.server import Service, ServiceServer, run_service
from remuda_core.rpc.tls import is_local
from remuda_core.telemetry import logs
from remuda_core.telemetry.http import telemetry_server
from remuda_core.telemetry.metrics import Metrics

from remuda_agent.attach import Attachment, HostIdentity
from remuda_agent.base_cache.cache import BaseCache
from remuda_agent.base_cache.fetching import FetchedBaseImages
from remuda_agent.base_cache.offering import ChunkOffers
from remuda_agent.base_cache.promises import Promises
from remuda_agent.console import ConsoleReader
from remuda_agent.disks.base_images import PretendingBaseImages
from remuda_agent.disks.base_turns import BaseTurns
from remuda_agent.disks.instance_files import PoolInstanceFiles
from remuda_agent.disks.makers import PretendingDiskMaker, ProgramDiskMaker
from remuda_agent.disks.pools import Pool, Pools
from remuda_agent.disks.readers import PretendingDiskReader, QemuDiskReader
from remuda_agent.greetings import Greetings
from remuda_agent.hypervisor import Hypervisor, HypervisorEvent
from remuda_agent.inventory import Inventory
from remuda_agent.jobs import JobTable
from remuda_agent.leaders import LeaderGuard
from remuda_agent.leftovers.receipts import Receipts
from remuda_agent.leftovers.surveying import Surveyor
from remuda_agent.leftovers.sweeping import Sweeper
from remuda_agent.migrating import Migrations
from remuda_agent.migration_service import MigrationService
from remuda_agent.network.bridges import Bridges, PretendedBridges
from remuda_agent.observer import Observer
from remuda_agent.opening import open_hypervisor
from remuda_agent.overrides import read_override
from remuda_agent.probing.assessing import GuestAssessor
from remuda_agent.probing.connecting import Connector
from remuda_agent.probing.describing import GuestDescriber
from remuda_agent.probing.image_stores import ImageStores
from remuda_agent.probing.listening import Listener, MigrationPorts
from remuda_agent.probing.nonces import NonceFiles
from remuda_agent.probing.resolving import Resolver
from remuda_agent.probing.service import ProbeService
from remuda_agent.quarantine import Decision, Quarantine
from remuda_agent.quarantine.finding import copies_here
from remuda_agent.resumes import ResumeTimes
from remuda_agent.service import AgentService
from remuda_agent.settings import AgentSettings
from remuda_agent.snapshots.moments import Moments
from remuda_agent.snapshots.reading import PretendingDiskContents, QemuDiskContents
from remuda_agent.snapshots.step import DiskSnapshots, Uploading
from remuda_agent.snapshots.uploading import PretendingUploader, Uploader
from remuda_agent.steps import StepRunner
from remuda_agent.steps.ports import BaseImages

_log = structlog.get_logger(__name__)


def main() -> None:
    settings = load_or_exit(AgentSettings, sys.argv[1:], "REMUDA_AGENT_")
    logs.configure(level=settings.log_level, service="agent")

    async def serve(stop: asyncio.Event) -> None:
        async with open_hypervisor(settings) as hypervisor:
            await serve_host(settings, hypervisor, stop)

    try:
        run_service(serve)
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"remuda-agent: {error}\n")
        raise SystemExit(2) from error


async def serve_host(settings: AgentSettings, hypervisor: Hypervisor, stop: asyncio.Event) -> None:
    """One host until `stop`; whoever plays many hosts in one process calls it for each."""
    override = read_override(settings.facts_override, lab=settings.lab)
    tls = settings.read_tls()
    host = HostId(settings.host_uuid)
    identity = f"host/{host}"
    metrics = Metrics()
    boot_id = (await asyncio.to_thread(settings.boot_id_file.read_text)).strip()
    pools = Pools(Pool(**pool.model_dump()) for pool in settings.pools)
    await asyncio.to_thread(pools.prepare)
    leaders = LeaderGuard(settings.state_dir)
    jobs = JobTable()
    resumes, greetings = ResumeTimes(), Greetings(hypervisor)
    changed = asyncio.Event()
    quarantine = await Quarantine.open(
        settings.state_dir,
        boot_id,
        lambda: copies_here(hypervisor, pools, host),
        leaders=leaders,
        changed=changed.set,
    )
    pretending = settings.hypervisor == "fake"
    moments = Moments(
        hypervisor=hypervisor,
        contents=PretendingDiskContents() if pretending else QemuDiskContents(),
        directory=settings.state_dir / "snapshots",
    )
    observer = Observer(
        hypervisor,
        first_sequence=time.time_ns() // 1000,
        migrates=jobs.migrates,
        waiting=lambda: quarantine.copies,
        settling=moments.settling,
    )
    migrations = Migrations(
        hypervisor=hypervisor,
        jobs=jobs,
        directory=settings.state_dir / "migrations",
        host_id=host,
        pace=settings.migration.pace,
    )
    bridges = (PretendedBridges if pretending else Bridges)(settings.bridges)
    for network, bridge in bridges.missing().items():
        _log.warning("a bridge is not there: its network is not offered", network=network, bridge=bridge)
    async with contextlib.AsyncExitStack() as stack:
        stores = {
            store: await stack.enter_async_context(open_channel(store, tls, insecure_identity=identity))
            for store in settings.image_stores
        }
        nonces = await stack.enter_async_context(NonceFiles(pools, notes=settings.state_dir / "probes"))
        base_turns, promises = BaseTurns(), Promises()
        reader = PretendingDiskReader() if pretending else QemuDiskReader()
        cache = BaseCache(
            pools=pools,
            turns=base_turns,
            promises=promises,
            reader=reader,
            host_id=host,
            metrics=metrics,
        )
        images = _base_images(
            settings,
            stores,
            lambda fetcher: FetchedBaseImages(
                pools=pools,
                fetcher=fetcher,
                turns=base_turns,
                cache=cache,
                promises=promises,
                metrics=metrics,
            ),
        ) or PretendingBaseImages(pools)
        files = PoolInstanceFiles(
            pools, PretendingDiskMaker() if pretending else ProgramDiskMaker(), on_removed=cache.wake
        )
        snapshots = DiskSnapshots(
            hypervisor=hypervisor,
            files=files,
            pools=pools,
            moments=moments,
            uploading=_uploading(stores),
            host_id=host,
        )
        steps = StepRunner(
            hypervisor=hypervisor,
            files=files,
            images=images,
            observer=observer,
            resumes=resumes,
            greetings=greetings,
            host_id=host,
            bridges=bridges,
            console_dir=settings.console_dir,
            quarantine=quarantine,
            snapshots=snapshots,
        )
        surveyor = Surveyor(
            observer=observer,
            pools=pools,
            reader=reader,
            host_id=host,
        )
        agent = AgentService(
            leaders=leaders,
            jobs=jobs,
            steps=steps,
            observer=observer,
            surveyor=surveyor,
            sweeper=Sweeper(
                leaders=leaders,
                jobs=jobs,
                hypervisor=hypervisor,
                surveyor=surveyor,
                pools=pools,
                base_turns=base_turns,
                receipts=Receipts(settings.state_dir),
                host_id=host,
            ),
            offers=ChunkOffers(
                pools=pools,
                turns=base_turns,
                promises=promises,
                leaders=leaders,
                stores=[ChunkServiceStub(channel) for channel in stores.values()],
            ),
            console=ConsoleReader(settings.console_dir),
            boot_id=boot_id,
        )
        resolver = Resolver(settings.fake_hosts if pretending else None)
        probes = ProbeService(
            hypervisor=hypervisor,
            describer=GuestDescriber(hypervisor=hypervisor, pools=pools, override=override),
            assessor=GuestAssessor(
                hypervisor=hypervisor,
                pools=pools,
                bridges=bridges,
                images=ImageStores(stores),
                override=override,
            ),
            resolver=resolver,
            connector=Connector(resolver),
            listener=Listener(_migration_ports(settings)),
            nonces=nonces,
        )
        # Left in reverse order: no new orders, then running jobs get their time, then the hypervisor goes.
        stack.push_async_callback(jobs.close, settings.drain_seconds)
        # Before anybody can ask: an order that came first would find no job to join and begin another.
        await migrations.adopt()
        await snapshots.end_leftovers(await asyncio.to_thread(files.owners))
        server = await stack.enter_async_context(
            ServiceServer(
                listen=settings.listen,
                services=[
                    Service(agent_pb2_grpc.add_AgentServiceServicer_to_server, agent),
                    Service(
                        migration_pb2_grpc.add_MigrationServiceServicer_to_server,
                        MigrationService(leaders=leaders, migrations=migrations),
                    ),
                    Service(probe_pb2_grpc.add_ProbeServiceServicer_to_server, probes),
                ],
                tls=tls,
                metrics=metrics,
                kinds={Kind.SERVICE, Kind.ANONYMOUS},
                drain_seconds=settings.drain_seconds,
            )
        )
        attachment = Attachment(
            identity=HostIdentity(
                host_id=host,
                hostname=settings.name,
                boot_id=boot_id,
                agent_endpoint=settings.advertise or _endpoint(settings, server.port),
                enrolment_token=settings.enrolment_token,
            ),
            schedulers=settings.schedulers,
            open_channel=lambda target: open_channel(target, tls, insecure_identity=identity),
            observer=observer,
            inventory=Inventory(
                hypervisor=hypervisor,
                pools=pools,
                bridges=bridges,
                settings=settings,
                override=override,
                warnings=lambda: quarantine.warnings,
            ),
            quarantine=quarantine,
            changed=changed,
        )
        await stack.enter_async_context(
            telemetry_server(
                settings.metrics_listen, metrics, refresh=lambda: _show(metrics, attachment, jobs, quarantine)
            )
        )
        tasks = [
            asyncio.create_task(
                _follow_events(hypervisor, changed, (resumes.hear, greetings.hear)), name="events"
            ),
            asyncio.create_task(attachment.run(), name="attach"),
            asyncio.create_task(cache.run(), name="base cache"),
            asyncio.create_task(stop.wait(), name="stop"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # only `stop` ends well: whatever else ended has broken, and says how
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await greetings.close()


def _endpoint(settings: AgentSettings, port: int) -> str:
    """Who listens on this machine only is found under that address, everybody else by its name."""
    address = settings.listen.rpartition(":")[0]
    return f"{address if is_local(settings.listen) else settings.name}:{port}"


def _show(metrics: Metrics, attachment: Attachment, jobs: JobTable, quarantine: Quarantine) -> None:
    metrics.agent_attached.set(1 if attachment.attached_to else 0)
    metrics.agent_jobs.clear()
    for step, count in jobs.steps().items():
        metrics.agent_jobs.labels(step=step).set(count)
    for decision in Decision:
        metrics.agent_quarantined.labels(decision=decision.value).set(quarantine.counts[decision])


async def _follow_events(
    hypervisor: Hypervisor, changed: asyncio.Event, hearers: Sequence[Callable[[HypervisorEvent], None]]
) -> None:
    """Events are hints to look: the observer tells what is really there."""
    async with hypervisor.events() as events:
        async for event in events:
            for hear in hearers:
                hear(event)
            changed.set()


def _base_images(
    settings: AgentSettings,
    stores: Mapping[str, grpc.aio.Channel],
    fetched: Callable[[ImageFetcher], FetchedBaseImages],
) -> BaseImages | None:
    """None: the host only pretends."""
    if settings.hypervisor == "fake" and not stores:
        return None
    if not stores:
        raise ConfigError("configuration: image_stores: at least one is needed")
    stubs = [ChunkServiceStub(channel) for channel in stores.values()]
    return fetched(ImageFetcher(stubs, owner=settings.host_uuid))


def _uploading(stores: Mapping[str, grpc.aio.Channel]) -> Uploading:
    stubs = [ChunkServiceStub(channel) for channel in stores.values()]

    def uploading(image: ImageId, grant: SignedGrant) -> Uploader:
        # Only a fake host has none: what it pretends to read goes nowhere.
        return ChunkUploader(stubs, image_id=image, grant=grant) if stubs else PretendingUploader()

    return uploading


def _migration_ports(settings: AgentSettings) -> MigrationPorts:
    own, listen = settings.migration, settings.listen
    # As with the endpoint: who listens on this machine only does so for migrations too.
    address = own.address or (listen.rpartition(":")[0].strip("[]") if is_local(listen) else "")
    return MigrationPorts(address=address, name=settings.name, first=own.port_min, last=own.port_max)
