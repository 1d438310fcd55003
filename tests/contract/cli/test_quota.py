"""quota show and set, over real gRPC."""

import json
from typing import Any

import pytest
from remuda.compute.v1 import quota_pb2
from remuda_core.errors import permission_denied

from tests.contract.cli.conftest import PROJECT


def test_what_is_used_and_what_is_left_stand_side_by_side(gateway: Any) -> None:
    done = gateway.run("quota", "show")
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        "WHAT                             USED     LIMIT     LEFT",
        "images                           2        none      -",
        "image bytes, as guests see them  3.0 GiB  10.0 GiB  7.0 GiB",
        "image bytes, as stored           1.0 GiB  none      -",
    ]
    exact = json.loads(gateway.run("quota", "show", "demo", "-o", "json").out)
    assert exact["imageVirtualBytes"] == str(10 << 30)
    assert "imageStoredBytes" not in exact
    assert {one.name for one in gateway.state.asked("GetQuota")} == {f"{PROJECT}/quota"}


def test_a_quota_of_another_project_is_asked_for_by_its_name(gateway: Any) -> None:
    for project in ("other", "third"):
        gateway.state.quotas[project] = quota_pb2.Quota(name=f"projects/{project}/quota")
    assert gateway.run("quota", "show", "other").code == 0
    assert gateway.run("quota", "show", "--project", "third").code == 0
    names = [one.name for one in gateway.state.asked("GetQuota")]
    assert names == ["projects/other/quota", "projects/third/quota"]


@pytest.mark.parametrize(
    ("options", "paths", "virtual", "stored"),
    [
        (("--image-bytes", "500GiB"), ["image_virtual_bytes"], 500 << 30, None),
        (("--image-stored-bytes", "1.5T"), ["image_stored_bytes"], None, 3 << 39),
        (
            ("--image-bytes", "none", "--image-stored-bytes", "0"),
            ["image_stored_bytes", "image_virtual_bytes"],
            None,
            0,
        ),
    ],
)
def test_limits_are_set_in_sizes_of_people_and_lifted_with_none(
    gateway: Any, options: tuple[str, ...], paths: list[str], virtual: int | None, stored: int | None
) -> None:
    done = gateway.run("quota", "set", "demo", *options)
    assert done.code == 0, done.err
    (request,) = gateway.state.asked("UpdateQuota")
    assert (request.quota.name, list(request.update_mask.paths)) == (f"{PROJECT}/quota", paths)
    for field, value in (("image_virtual_bytes", virtual), ("image_stored_bytes", stored)):
        assert request.quota.HasField(field) == (value is not None)
        assert value is None or getattr(request.quota, field) == value
    assert request.request_id


@pytest.mark.parametrize(
    "arguments", [("demo",), ("demo", "--image-bytes", "much"), ("demo", "--image-bytes", "-1"), ()]
)
def test_what_is_no_limit_is_wrong_usage(gateway: Any, arguments: tuple[str, ...]) -> None:
    assert gateway.run("quota", "set", *arguments).code == 2
    assert not gateway.state.asked("UpdateQuota")


def test_a_dry_run_of_a_limit_validates_only_and_others_than_admins_are_refused(gateway: Any) -> None:
    done = gateway.run("quota", "set", "demo", "--image-bytes", "1GiB", "--dry-run")
    assert done.code == 0
    assert "nothing was done" in done.err
    assert gateway.state.asked("UpdateQuota")[0].validate_only
    gateway.state.refusals["UpdateQuota"] = permission_denied("UpdateQuota needs the admin role")
    assert gateway.run("quota", "set", "demo", "--image-bytes", "1GiB").code == 6
