"""The lab's configuration files are what the services accept, and say what the lab means."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

import pytest
from remuda_agent.settings import AgentSettings
from remuda_api.settings import ApiSettings
from remuda_core.config import ServiceSettings, load
from remuda_image_store.settings import Settings as ImageStoreSettings
from remuda_lab.cluster import settings
from remuda_lab.cluster.settings import Options
from remuda_lab.cluster.toml_text import Value, render
from remuda_lab.layout import LabPaths, plan_hosts
from remuda_lab.pki import KeyPair
from remuda_scheduler.settings import SchedulerSettings

S = TypeVar("S", bound=ServiceSettings)
PATHS = LabPaths(root=Path("/labs/a"))
PAIR = KeyPair(certificate=Path("/labs/a/cert.pem"), key=Path("/labs/a/key.pem"))
HOSTS = plan_hosts("a", 3)


def accepted(kind: type[S], document: dict[str, Value], place: Path) -> S:
    """As the service itself reads it."""
    file = place / "service.toml"
    file.write_text(render(document))
    return load(kind, ["--config", str(file)], "NOBODY_SETS_THIS_", environ={})


def test_the_api_takes_its_file_and_tells_prometheus_of_every_process(tmp_path: Path) -> None:
    document = settings.api(PATHS, PAIR, Options(), tokens=Path("/labs/a/tokens.toml"), hosts=HOSTS)
    api = accepted(ApiSettings, document, tmp_path)
    assert api.listen == "10.77.0.1:7443"
    assert api.token_listen == "10.77.0.1:7453"
    assert api.tls is not None
    assert api.tls.ca == Path("/labs/a/pki/ca.pem")
    told = {group.labels["replica"]: group.targets[0] for group in api.sd_targets}
    assert told["host3"] == "10.77.0.13:9464"
    assert set(told) == {
        *("api", "scheduler-1", "scheduler-2", "image-store", "etcd"),
        *(plan.name for plan in HOSTS),
    }


def test_a_scheduler_takes_its_file(tmp_path: Path) -> None:
    options = Options(election_ttl_seconds=10, patience_seconds=15)
    document = settings.scheduler(PATHS, "scheduler-2", PAIR, options, grant_key=Path("/k.pem"))
    scheduler = accepted(SchedulerSettings, document, tmp_path)
    assert (scheduler.name, scheduler.advertise) == ("scheduler-2", "10.77.0.3:7444")
    assert (scheduler.election_ttl_seconds, scheduler.patience_seconds) == (10, 15)


def test_the_image_store_takes_its_file_and_keeps_chunks_in_the_labs_directory(tmp_path: Path) -> None:
    document = settings.image_store(PATHS, PAIR, Options(), grant_public_key=Path("/k.pem"))
    assert accepted(ImageStoreSettings, document, tmp_path).backend == "file:///labs/a/image-store/chunks"


@pytest.mark.parametrize(("number", "pools"), [(1, ["local", "shared"]), (3, ["local"])])
def test_an_agent_takes_its_file_and_has_the_shared_pool_only_where_it_is_mounted(
    tmp_path: Path, number: int, pools: list[str]
) -> None:
    document = settings.agent(HOSTS[number - 1], Options(domain_type="kvm"), token="once")
    agent = accepted(AgentSettings, document, tmp_path)
    assert [pool.name for pool in agent.pools] == pools
    assert agent.bridges == {"physnet": "br0"}
    assert (agent.migration.transport, agent.migration.address) == ("tls", f"10.77.0.1{number}")
    assert (agent.domain_type, agent.enrolment_token) == ("kvm", "once")
    assert agent.boot_id_file == Path("/run/remuda-boot-id")


def test_what_is_rendered_reads_back_the_same() -> None:
    document: dict[str, Value] = {
        "text": 'a "quoted" \\ word\n',
        "number": 3,
        "share": 0.5,
        "yes": True,
        "list": ["a", "b"],
        "tables": [{"name": "x", "deep": {"k": 1}}],
        "table": {"path": Path("/a/b"), "key with space": "v"},
    }
    back = tomllib.loads(render(document))
    assert back == {**document, "table": {"path": "/a/b", "key with space": "v"}}
