"""A host that was booted refuses to set its copies running, over gRPC; what runs is left alone."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from remuda.agent.v1 import agent_pb2 as pb
from remuda.compute.v1.instance_pb2 import Instance
from remuda_agent.hypervisor.fake import FakeFabric, FakeHypervisor
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import InstanceId
from remuda_core.rpc.status import from_rpc_error

from tests.contract.agent.test_agent_rpcs import (
    DO,
    INSTANCE,
    UNDO,
    Host,
    define,
    disks,
    fabric,
    key,
    launch,
    prepare_incoming,
    running_host,
    spec,
    start,
)

__all__ = ["fabric"]

HOST_ID = str(uuid.uuid4())


@asynccontextmanager
async def booted(fabric: FakeFabric, directory: Path, boot_id: str) -> AsyncIterator[Host]:
    async with running_host("a", fabric, directory, boot_id=boot_id, host_id=HOST_ID) as host:
        yield host


async def power_cycle(fabric: FakeFabric) -> None:
    fabric.power_fail("a")
    fabric.boot("a")


async def refusal(host: Host, request: pb.RunStepRequest) -> RemudaError:
    with pytest.raises(RemudaError) as refused:
        await host.done(request)
    return refused.value


async def test_after_a_power_failure_a_start_order_waits_for_the_leaders_word(
    fabric: FakeFabric, tmp_path: Path
) -> None:
    async with booted(fabric, tmp_path, "boot-1") as host:
        await launch(host)
    await power_cycle(fabric)
    async with booted(fabric, tmp_path, "boot-2") as host:
        error = await refusal(host, start())
        assert error.reason is Reason.QUARANTINED
        assert error.code is grpc.StatusCode.UNAVAILABLE
        assert error.retry_after_seconds
        assert error.metadata == {"instance": INSTANCE, "epoch": "1", "decision": "NONE"}
        with pytest.raises(grpc.aio.AioRpcError) as older:
            await host.step(
                pb.RunStepRequest(key=key("guest_started", leader=4), start_domain=pb.StartDomain())
            )
        assert from_rpc_error(older.value).reason is Reason.STALE_LEADER
        assert await host.power() == Instance.POWER_STATE_SHUTOFF


async def test_after_a_restart_within_one_boot_it_runs_on_and_can_be_started(
    fabric: FakeFabric, tmp_path: Path
) -> None:
    async with booted(fabric, tmp_path, "boot-1") as host:
        await launch(host)
    async with booted(fabric, tmp_path, "boot-1") as host:
        assert await host.power() == Instance.POWER_STATE_RUNNING
        await host.done(start(UNDO))
        await host.done(start())
        assert await host.power() == Instance.POWER_STATE_RUNNING


async def test_a_guest_that_runs_unconfirmed_is_neither_stopped_nor_refused(
    fabric: FakeFabric, tmp_path: Path
) -> None:
    async with booted(fabric, tmp_path, "boot-1") as host:
        await launch(host)
    # Its QEMU lives on: only the agent's memory of the boot is wrong.
    async with booted(fabric, tmp_path, "boot-2") as host:
        await host.done(start())
        assert await host.power() == Instance.POWER_STATE_RUNNING
        # Paused, it would have to be set running.
        await host.done(pb.RunStepRequest(key=key("guest_paused"), pause_domain=pb.PauseDomain()))
        finish = pb.RunStepRequest(
            key=key("target_finished"), finish_incoming=pb.FinishIncoming(pool=spec().pool)
        )
        for request in (start(), finish):
            assert (await refusal(host, request)).reason is Reason.QUARANTINED
        assert await host.power() == Instance.POWER_STATE_PAUSED


async def test_a_copy_made_by_order_is_confirmed_by_that_order(fabric: FakeFabric, tmp_path: Path) -> None:
    async with booted(fabric, tmp_path, "boot-1") as host:
        await launch(host)
    await power_cycle(fabric)
    async with booted(fabric, tmp_path, "boot-2") as host:
        # Defining it sets nothing running, and confirms nothing.
        await host.done(define())
        assert (await refusal(host, start())).reason is Reason.QUARANTINED
        await host.done(disks())
        await host.done(start())
        assert await host.power() == Instance.POWER_STATE_RUNNING


async def test_files_without_a_domain_are_in_quarantine_too(fabric: FakeFabric, tmp_path: Path) -> None:
    async with booted(fabric, tmp_path, "boot-1") as host:
        await launch(host)
        await FakeHypervisor(fabric, "a").destroy(InstanceId(INSTANCE))
        await FakeHypervisor(fabric, "a").undefine(InstanceId(INSTANCE))
    async with booted(fabric, tmp_path, "boot-2") as host:
        answer = await host.agent.ObserveInstance(pb.ObserveInstanceRequest(instance_id=INSTANCE))
        assert answer.observed.power_state == Instance.POWER_STATE_ABSENT
        assert answer.observed.epoch == 1
        await host.done(define())
        assert (await refusal(host, start())).reason is Reason.QUARANTINED


async def test_a_copy_that_was_received_in_this_boot_is_confirmed(fabric: FakeFabric, tmp_path: Path) -> None:
    async with booted(fabric, tmp_path, "boot-1") as host:
        await prepare_incoming(host)
    async with booted(fabric, tmp_path, "boot-2") as host:
        await prepare_incoming(host)
        request = define()
        request.key.epoch = 2
        await host.done(request)
        request = start()
        request.key.epoch = 2
        await host.done(request)
        assert await host.power() == Instance.POWER_STATE_RUNNING


async def test_a_source_that_was_released_refuses_to_start_its_copy_for_good(
    fabric: FakeFabric, tmp_path: Path
) -> None:
    release = pb.RunStepRequest(
        key=key("source_released", DO), release_source=pb.ReleaseSource(pool=spec().pool)
    )
    async with booted(fabric, tmp_path, "boot-1") as host:
        await launch(host)
        await host.done(start(UNDO))
        await host.done(release)
        for request in (start(), disks()):
            assert (await refusal(host, request)).reason is Reason.STALE_EPOCH
    async with booted(fabric, tmp_path, "boot-1") as host:
        assert (await refusal(host, start())).reason is Reason.STALE_EPOCH
        assert await host.power() == Instance.POWER_STATE_ABSENT
        # A later placement is another copy.
        await prepare_incoming(host)
