"""Clients that know nothing of Remuda but what its servers tell by reflection: `buf curl`."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from remuda_lab.commands import run
from remuda_lab.errors import CommandFailed
from remuda_lab.mesh import IMAGE, Mesh
from remuda_lab.python import console_script
from remuda_lab.waiting import wait_for

pytestmark = pytest.mark.root

INSTANCES = "remuda.compute.v1.InstanceService"
OPERATIONS = "google.longrunning.Operations"
PARENT = "projects/demo"


def call(mesh: Mesh, method: str, request: dict[str, Any], *, user: str = "alice") -> Any:
    """With the user's own certificate."""
    client = mesh.cluster.client
    pair = client.pair(user)
    return _buf(
        *("--cacert", str(client.ca), "--cert", str(pair.certificate), "--key", str(pair.key)),
        *("-d", json.dumps(request), f"https://{client.endpoint}/{method}"),
    )


def _buf(*arguments: str) -> Any:
    text = run([console_script("buf"), "curl", "--protocol", "grpc", *arguments], timeout=60)
    return json.loads(text or "{}")


def test_a_client_built_from_reflection_alone_launches_and_deletes_a_guest(mesh: Mesh) -> None:
    image = mesh.cli().json("image", "show", IMAGE)["name"]
    instance = {
        "displayName": "foreign",
        "flavor": "flavors/tiny",
        "image": image,
        "networkInterfaces": [{"network": "networks/guests"}],
    }
    request = {"parent": PARENT, "instance": instance, "requestId": str(uuid.uuid4())}
    operation = call(mesh, f"{INSTANCES}/CreateInstance", request)
    assert call(mesh, f"{INSTANCES}/CreateInstance", request)["name"] == operation["name"], "the same id"
    ended = wait_for(
        "the launch ends",
        lambda: found if (found := _operation(mesh, operation["name"])).get("done") else None,
        timeout=120,
        interval=0.2,
        status=lambda: _operation(mesh, operation["name"]),
    )
    assert ended["response"]["state"] == "STATE_RUNNING"
    name = ended["response"]["name"]
    mesh.guest(name).view.wait_up()
    assert call(mesh, f"{INSTANCES}/GetInstance", {"name": name})["displayName"] == "foreign"
    deletion = call(mesh, f"{INSTANCES}/DeleteInstance", {"name": name})
    wait_for(
        "it is deleted",
        lambda: _operation(mesh, deletion["name"]).get("done"),
        timeout=120,
        status=lambda: _operation(mesh, deletion["name"]),
    )
    assert call(mesh, f"{INSTANCES}/ListInstances", {"parent": PARENT}).get("instances", []) == []


def test_another_projects_user_and_an_owner_without_the_role_are_refused(mesh: Mesh) -> None:
    with pytest.raises(CommandFailed, match="permission_denied"):
        call(mesh, f"{INSTANCES}/ListInstances", {"parent": PARENT}, user="mallory")
    with pytest.raises(CommandFailed, match="permission_denied"):
        call(mesh, "remuda.compute.v1.HostService/ListHosts", {})


def test_without_a_certificate_the_api_is_not_reached_and_with_a_token_it_is(mesh: Mesh) -> None:
    client = mesh.cluster.client
    body = ("-d", json.dumps({"parent": PARENT}))
    with pytest.raises(CommandFailed):
        _buf("--cacert", str(client.ca), *body, f"https://{client.endpoint}/{INSTANCES}/ListInstances")
    url = f"https://{client.token_endpoint}/{INSTANCES}/ListInstances"
    token = ("-H", f"Authorization: Bearer {client.token}", "--reflect-header", "*")
    assert _buf("--cacert", str(client.ca), *token, *body, url).get("instances", []) == []
    with pytest.raises(CommandFailed, match="unauthenticated"):
        _buf("--cacert", str(client.ca), "-H", "Authorization: Bearer nonsense", *body, url)


def test_a_hosts_certificate_and_a_services_have_no_business_at_the_public_api(mesh: Mesh) -> None:
    client = mesh.cluster.client
    tls = mesh.lab.paths.host("host1").etc / "remuda/tls"
    pair = ("--cert", str(tls / "cert.pem"), "--key", str(tls / "key.pem"))
    url = f"https://{client.endpoint}/{INSTANCES}/ListInstances"
    with pytest.raises(CommandFailed, match="permission_denied"):
        _buf("--cacert", str(client.ca), *pair, "-d", json.dumps({"parent": PARENT}), url)


def _operation(mesh: Mesh, name: str) -> Any:
    return call(mesh, f"{OPERATIONS}/GetOperation", {"name": name})
