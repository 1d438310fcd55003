"""Nouns that answer at once, over real gRPC."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from remuda_cli import completion, session
from remuda_cli.main import build
from remuda_cli.settings import resolve
from remuda_core.errors import Reason, RemudaError, invalid_argument


def test_instances_are_listed_over_all_pages_with_their_hosts_names(gateway: Any) -> None:
    gateway.state.instances["third"] = gateway.state.instances[next(iter(gateway.state.instances))]
    done = gateway.run("instance", "list")
    rows = [line.split() for line in done.out.splitlines()]
    assert rows[0][:4] == ["NAME", "STATE", "HOST", "ADDRESS"]
    assert [row[:4] for row in rows[1:3]] == [
        ["web-1", "RUNNING", "host1", "10.78.0.5"],
        ["worker", "RUNNING", "host1", "10.78.0.5"],
    ]
    assert len(rows) == 4
    assert done.code == 0


def test_a_state_and_a_host_become_the_servers_filter(gateway: Any) -> None:
    assert gateway.run("instance", "list", "--state", "running", "--host", "host1").code == 0
    wanted = gateway.state.asked("ListInstances")[0].filter
    assert wanted == 'state = RUNNING AND host = "hosts/aaaaaaaa-0000-4000-8000-000000000001"'


def test_json_is_one_document_and_nothing_else_is_on_stdout(gateway: Any) -> None:
    listed = json.loads(gateway.run("instance", "list", "-o", "json").out)
    assert [item["displayName"] for item in listed] == ["web-1", "worker"]
    shown = json.loads(gateway.run("instance", "show", "web-1", "-o", "json").out)
    assert shown["memoryMib"] == "512"
    assert shown["operation"] == ""


def test_yaml_and_names_can_be_asked_for(gateway: Any) -> None:
    assert yaml.safe_load(gateway.run("flavor", "show", "small", "-o", "yaml").out)["vcpus"] == 1
    listed = gateway.run("flavor", "list", "-o", "name").out.split()
    assert listed == ["flavors/large", "flavors/medium", "flavors/small"]


def test_a_unique_prefix_of_a_name_or_of_a_uuid_is_enough(gateway: Any) -> None:
    assert "web-1" in gateway.run("instance", "show", "we").out
    assert "host2" in gateway.run("host", "show", "bbbb").out


def test_an_ambiguous_prefix_is_a_usage_error_that_names_the_candidates(gateway: Any) -> None:
    done = gateway.run("instance", "show", "w")
    assert done.code == 2
    assert "fits 2 instances: web-1, worker" in done.err


def test_what_is_not_there_is_exit_code_3_with_close_names_and_the_next_command(gateway: Any) -> None:
    done = gateway.run("instance", "show", "wokrer")
    assert done.code == 3
    assert "INSTANCE_NOT_FOUND" in done.err
    assert "close to it: worker" in done.err
    assert "try: remuda instance list" in done.err
    assert done.out == ""


def test_allowed_actions_say_why_not(gateway: Any) -> None:
    out = gateway.run("instance", "actions", "web-1").out
    assert "StartInstance  no       a RUNNING instance cannot be started" in out


def test_events_show_host_names_and_milliseconds(gateway: Any) -> None:
    out = gateway.run("instance", "events", "web-1").out
    assert "2023-11-14T22:13:20.041Z" in out
    assert "host1" in out


def test_the_console_log_is_printed_byte_for_byte(gateway: Any) -> None:
    command = [sys.executable, "-m", "remuda_cli", "instance", "console-log", "web-1"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=90)
    assert done.stdout == b"login: \xff\r\n"
    assert b"--bytes for more" in done.stderr


def test_an_update_keeps_the_other_labels_and_sends_the_etag_it_read(gateway: Any) -> None:
    done = gateway.run("instance", "update", "web-1", "--label", "owner=me", "--remove-label", "gone")
    request = gateway.state.asked("UpdateInstance")[0]
    assert done.code == 0
    assert dict(request.instance.labels) == {"tier": "web", "owner": "me"}
    assert request.instance.etag == "e1"
    assert list(request.update_mask.paths) == ["labels"]


def test_an_update_of_nothing_is_a_usage_error(gateway: Any) -> None:
    assert gateway.run("instance", "update", "web-1").code == 2
    assert not gateway.state.requests


def test_creating_a_host_prints_only_the_token_on_stdout(gateway: Any) -> None:
    done = gateway.run("host", "create", "host3", "--uuid", "CCCCCCCC-0000-4000-8000-000000000003")
    assert done.out == "once-only\n"
    assert gateway.state.asked("CreateHost")[0].host_id == "cccccccc-0000-4000-8000-000000000003"


def test_cordon_shows_the_host_as_cordoned(gateway: Any) -> None:
    assert "UP,CORDONED" in gateway.run("host", "cordon", "host1").out
    assert "UP,CORDONED" not in gateway.run("host", "uncordon", "host1").out


def test_placement_is_explained_per_host(gateway: Any) -> None:
    done = gateway.run("host", "explain-placement", "--flavor", "small", "--network", "lan")
    assert "64 MiB free, 512 needed" in done.out
    assert "refused by filter: memory 1; chosen: host2" in done.err


def test_flavors_and_networks_are_made_with_their_units(gateway: Any) -> None:
    assert gateway.run("flavor", "create", "tiny", "--vcpus", "1", "--memory", "256", "--disk", "2").code == 0
    assert gateway.state.asked("CreateFlavor")[0].flavor.memory_mib == 256
    made = gateway.run(
        "network", "create", "lan2", "--cidr", "10.9.0.0/24", "--physical", "physnet", "--dns", "10.9.0.1"
    )
    assert made.code == 0
    assert list(gateway.state.asked("CreateNetwork")[0].network.dns_servers) == ["10.9.0.1"]


@pytest.mark.parametrize("noun", ["host", "image", "flavor", "network", "instance"])
def test_nothing_is_deleted_unasked_where_nobody_can_answer(noun: str, gateway: Any) -> None:
    name = {"host": "host1", "image": "debian", "flavor": "small", "network": "lan", "instance": "web-1"}[
        noun
    ]
    refused = gateway.run(noun, "delete", name)
    assert refused.code == 2
    assert "--yes" in refused.err
    assert not gateway.state.asked(f"Delete{noun.title()}")


@pytest.mark.parametrize("noun", ["host", "image", "flavor", "network"])
def test_deleting_says_what_was_removed(noun: str, gateway: Any) -> None:
    name = {"host": "host1", "image": "debian", "flavor": "small", "network": "lan"}[noun]
    done = gateway.run(noun, "delete", name, "--yes")
    assert done.code == 0
    assert "removed" in done.err
    assert len(gateway.state.asked(f"Delete{noun.title()}")) == 1


def test_every_mutation_has_a_request_id_and_is_repeated_with_it_when_it_got_no_answer(gateway: Any) -> None:
    gateway.state.unavailable["CreateFlavor"] = 2
    assert gateway.run("flavor", "create", "tiny", "--vcpus", "1", "--memory", "256").code == 0
    sent = [request.request_id for request in gateway.state.asked("CreateFlavor")]
    assert len(sent) == 3
    assert len(set(sent)) == 1
    assert len(sent[0]) == 36


@pytest.mark.parametrize(
    ("error", "code", "hint"),
    [
        (RemudaError(Reason.PERMISSION_DENIED, "not yours"), 6, "REMUDA_TOKEN"),
        (RemudaError(Reason.UNAUTHENTICATED, "who are you"), 6, "REMUDA_CERT"),
        (RemudaError(Reason.HOST_IN_USE, "instances are on it"), 4, "remuda instance list -o wide"),
        (RemudaError(Reason.NO_HOST_FITS, "no host fits"), 4, "remuda host explain-placement"),
        (RemudaError(Reason.INTERNAL, "broken"), 1, "request id: seen-in-the-logs"),
        (invalid_argument("flavor", "is odd"), 2, "flavor: is odd"),
    ],
)
def test_a_refusal_becomes_an_exit_code_a_reason_and_a_next_step(
    error: RemudaError, code: int, hint: str, gateway: Any
) -> None:
    gateway.state.refusals["ExplainPlacement"] = error
    done = gateway.run("host", "explain-placement", "--flavor", "small")
    assert done.code == code
    assert f"{error.message} ({error.reason.value})" in done.err
    assert hint in done.err


def test_a_gateway_that_is_away_is_exit_code_5(gateway: Any) -> None:
    done = gateway.run("flavor", "list", "--endpoint", "http://127.0.0.1:1")
    assert done.code == 5
    assert "check REMUDA_ENDPOINT" in done.err


def test_debug_prints_the_request_id_and_the_same_call_for_buf_curl_without_the_token(
    gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMUDA_TOKEN", "very-secret")
    done = gateway.run("flavor", "show", "small", "--debug")
    sent = gateway.state.metadata[0]
    assert f"debug: request id {sent['x-request-id']}" in done.err
    assert sent["authorization"] == "Bearer very-secret"
    assert "very-secret" not in done.err
    assert "buf curl --protocol grpc --http2-prior-knowledge" in done.err
    assert '{"name": "flavors/small"}' in done.err
    assert f"{gateway.endpoint}/remuda.compute.v1.FlavorService/GetFlavor" in done.err


def test_hosts_are_listed_by_name(gateway: Any) -> None:
    hosts = gateway.state.hosts
    for name in list(hosts):
        hosts[name].display_name = {"host1": "rack2-b", "host2": "rack1-a"}[hosts[name].display_name]
    rows = [line.split() for line in gateway.run("host", "list").out.splitlines()]
    assert [row[0] for row in rows[1:]] == ["rack1-a", "rack2-b"]


def test_who_may_not_list_hosts_sees_the_beginning_of_their_uuids(gateway: Any) -> None:
    gateway.state.refusals["ListHosts"] = RemudaError(Reason.PERMISSION_DENIED, "administrators only")
    done = gateway.run("instance", "list")
    assert done.code == 0
    assert "aaaaaaaa" in done.out


def test_names_of_hosts_that_could_not_be_read_are_read_later(
    gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "NAMES_AGAIN_SECONDS", 0.0)
    one = session.Session(connection=resolve(environ={}, contexts={}, endpoint=gateway.endpoint))
    try:
        host = next(iter(one.gateway.list_hosts()))
        gateway.state.refusals["ListHosts"] = RemudaError(Reason.SHUTTING_DOWN, "restarting")
        assert one.label(host.name) == host.uid[:8]
        del gateway.state.refusals["ListHosts"]
        assert one.label(host.name) == host.display_name
    finally:
        one.close()


def test_migrations_are_found_by_a_prefix_without_their_instance(gateway: Any) -> None:
    out = gateway.run("migration", "show", "3a").out
    assert "downtime_ms:" in out
    assert "41 ms" in out
    assert "host2 (hosts/bbbbbbbb" in out
    assert "LIVE_SHARED" in gateway.run("migration", "list", "web-1").out


def test_completion_proposes_the_servers_names_and_stays_silent_without_a_server(
    gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = typer.Context(typer.main.get_command(build()))
    assert completion.instances(context, "w") == ["web-1", "worker"]
    assert completion.hosts(context, "host2") == ["host2"]
    monkeypatch.setenv("REMUDA_ENDPOINT", "http://127.0.0.1:1")
    assert completion.hosts(context, "") == []
    context.params["endpoint"] = gateway.endpoint
    inner = typer.Context(typer.main.get_command(build()), parent=context)
    assert completion.hosts(inner, "host2") == ["host2"], "options before the noun count"


def test_a_context_of_the_file_can_be_named(
    gateway: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "contexts.toml"
    file.write_text(f'[contexts.lab]\nendpoint = "{gateway.endpoint}"\nproject = "other"\n')
    monkeypatch.setenv("REMUDA_CONFIG", str(file))
    monkeypatch.setenv("REMUDA_ENDPOINT", "http://127.0.0.1:1")
    assert gateway.run("instance", "list", "--context", "lab").code == 0
    assert gateway.state.asked("ListInstances")[0].parent == "projects/other"
    unknown = gateway.run("instance", "list", "--context", "attic")
    assert unknown.code == 2
    assert "it has: lab" in unknown.err
