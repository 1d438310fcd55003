"""image list, update, share, unshare, and images of other projects, over real gRPC."""

from pathlib import Path
from typing import Any

import pytest
import typer
from remuda.image.v1 import image_pb2
from remuda_cli import completion
from remuda_cli.main import build
from remuda_core.errors import etag_mismatch, permission_denied

from tests.contract.cli.conftest import PROJECT, WEB

Image = image_pb2.Image
DEBIAN = f"{PROJECT}/images/{WEB}"
ALPINE = "projects/golden/images/6f1c8a5e-0000-4000-8000-0000000000aa"


@pytest.fixture
def foreign(gateway: Any) -> Any:
    """Another project shares images."""
    for name, uid in (("alpine", ALPINE.rpartition("/")[2]), ("alpine-edge", "7" * 8)):
        full = f"projects/golden/images/{uid}"
        gateway.state.images[full] = Image(
            name=full,
            uid=uid,
            display_name=name,
            visibility=Image.VISIBILITY_SHARED,
            state=Image.STATE_ACTIVE,
            virtual_bytes=3 << 30,
        )
    return gateway


def asked(gateway: Any) -> image_pb2.UpdateImageRequest:
    (request,) = gateway.state.asked("UpdateImage")
    assert isinstance(request, image_pb2.UpdateImageRequest)
    return request


def test_images_of_other_projects_are_listed_when_asked_for_with_whose_they_are(foreign: Any) -> None:
    assert foreign.run("image", "list").code == 0
    done = foreign.run("image", "list", "--visible", "-o", "wide")
    assert [one.include_visible for one in foreign.state.asked("ListImages")] == [False, False, True, True]
    rows = [line.split() for line in done.out.splitlines()]
    assert rows[0][:5] == ["NAME", "STATE", "VISIBILITY", "PROJECT", "DISK"]
    assert rows[2][:4] == ["alpine", "ACTIVE", "shared", "golden"]


def test_an_image_of_another_project_is_launched_from_by_its_name(foreign: Any) -> None:
    done = foreign.run(
        "instance", "launch", "web", "--flavor", "small", "--image", "alpine", "--network", "lan", "--no-wait"
    )
    assert done.code == 0, done.err
    assert foreign.state.asked("CreateInstance")[0].instance.image == ALPINE
    assert foreign.run("image", "show", "alpine", "-o", "name").out.strip() == ALPINE


def test_what_changes_an_image_never_looks_at_those_of_others(foreign: Any) -> None:
    for verb in (("delete", "--yes"), ("update", "--rescue"), ("share", "other"), ("unshare",)):
        done = foreign.run("image", verb[0], "alp", *verb[1:])
        # The fake lists everything whatever is asked for: what counts is the question.
        assert not any(one.include_visible for one in foreign.state.asked("ListImages")), done.err


def test_an_update_sends_what_was_given_and_nothing_else(gateway: Any) -> None:
    done = gateway.run(
        "image", "update", "debian", "--min-disk", "0", "--no-guest-agent", "--name", "new", "--etag", "7"
    )
    assert done.code == 0, done.err
    request = asked(gateway)
    assert sorted(request.update_mask.paths) == ["display_name", "guest_agent", "min_disk_gib"]
    assert request.image == Image(name=DEBIAN, display_name="new", etag="7")
    assert request.request_id


def test_every_property_can_be_set(gateway: Any) -> None:
    options = (
        "--min-memory",
        "64",
        "--architecture",
        "x86_64",
        "--guest-agent",
        "--rescue",
        "--visibility",
        "public",
    )
    assert gateway.run("image", "update", "debian", *options).code == 0
    assert asked(gateway).image == Image(
        name=DEBIAN,
        min_memory_mib=64,
        architecture="x86_64",
        guest_agent=True,
        rescue=True,
        visibility=Image.VISIBILITY_PUBLIC,
    )


def test_naming_projects_means_sharing(gateway: Any) -> None:
    assert (
        gateway.run("image", "update", "debian", "--share-with", "a", "--share-with", "projects/b").code == 0
    )
    request = asked(gateway)
    assert sorted(request.update_mask.paths) == ["shared_with", "visibility"]
    assert request.image.visibility == Image.VISIBILITY_SHARED
    assert list(request.image.shared_with) == ["projects/a", "projects/b"]


def test_sharing_adds_to_the_projects_and_holds_the_etag_that_it_read(gateway: Any) -> None:
    image = gateway.state.images[DEBIAN]
    image.etag, image.visibility = "41", Image.VISIBILITY_SHARED
    image.shared_with.append("projects/a")
    assert gateway.run("image", "share", "debian", "b", "projects/c").code == 0
    request = asked(gateway)
    assert request.image.etag == "41"
    assert list(request.image.shared_with) == ["projects/a", "projects/b", "projects/c"]
    gateway.state.refusals["UpdateImage"] = etag_mismatch(DEBIAN, given="41", current="42")
    assert gateway.run("image", "share", "debian", "d").code == 4


def test_sharing_what_is_public_is_refused_before_anything_changes(gateway: Any) -> None:
    gateway.state.images[DEBIAN].visibility = Image.VISIBILITY_PUBLIC
    done = gateway.run("image", "share", "debian", "b")
    assert done.code == 2
    assert "every project may use it" in done.err
    assert not gateway.state.asked("UpdateImage")


@pytest.mark.parametrize(
    ("gone", "left", "visibility"),
    [
        (("a",), ["projects/b"], Image.VISIBILITY_SHARED),
        (("a", "projects/b"), [], Image.VISIBILITY_PRIVATE),
        ((), [], Image.VISIBILITY_PRIVATE),
    ],
)
def test_unsharing_takes_projects_away_and_the_last_one_makes_it_private(
    gateway: Any, gone: tuple[str, ...], left: list[str], visibility: "Image.Visibility.ValueType"
) -> None:
    image = gateway.state.images[DEBIAN]
    image.visibility = Image.VISIBILITY_SHARED
    image.shared_with.extend(["projects/a", "projects/b"])
    assert gateway.run("image", "unshare", "debian", *gone).code == 0
    request = asked(gateway)
    assert (list(request.image.shared_with), request.image.visibility) == (left, visibility)
    assert list(request.update_mask.paths) == ["visibility", "shared_with"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("update", "debian"),
        ("update", "debian", "--visibility", "private", "--share-with", "a"),
        ("update", "debian", "--visibility", "everybody"),
        ("unshare", "debian", "stranger"),
        ("share", "debian"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage_and_asks_nothing(
    gateway: Any, arguments: tuple[str, ...]
) -> None:
    assert gateway.run("image", *arguments).code == 2
    assert not gateway.state.asked("UpdateImage")


def test_a_dry_run_of_an_update_validates_only_and_a_refusal_has_its_exit_code(gateway: Any) -> None:
    assert gateway.run("image", "update", "debian", "--rescue", "--dry-run").code == 0
    assert asked(gateway).validate_only
    gateway.state.refusals["UpdateImage"] = permission_denied("making an image public needs the admin role")
    done = gateway.run("image", "update", "debian", "--visibility", "public")
    assert done.code == 6
    assert "admin role" in done.err


def test_an_upload_says_who_may_use_it_and_that_it_is_for_rescuing(gateway: Any, tmp_path: Path) -> None:
    file = tmp_path / "disk.img"
    file.write_bytes(b"x" * 512)
    done = gateway.run("image", "create", str(file), "--share-with", "a", "--rescue")
    assert done.code == 0, done.err
    (made,) = [image for image in gateway.state.images.values() if image.display_name == "disk"]
    assert (made.visibility, list(made.shared_with), made.rescue) == (
        Image.VISIBILITY_SHARED,
        ["projects/a"],
        True,
    )


def test_completion_proposes_what_can_be_used_and_own_images_for_changes(foreign: Any) -> None:
    context = typer.Context(typer.main.get_command(build()))
    assert completion.images(context, "alp") == ["alpine", "alpine-edge"]
    assert all(one.include_visible for one in foreign.state.asked("ListImages"))
    foreign.state.requests.clear()
    completion.own_images(context, "")
    assert not any(one.include_visible for one in foreign.state.asked("ListImages"))
