"""Who may use an image, and what others are shown of it: the whole table."""

from itertools import product

import pytest
from remuda.image.v1.image_pb2 import Image
from remuda.store.v1.image_pb2 import ImageRecord
from remuda_api.image_visibility import image_shown_to, readable_by, usable_by
from remuda_core.auth.caller import Caller, Kind
from remuda_core.etcd.cache import Entry
from remuda_core.ids import ProjectId

OWN, FRIEND, STRANGER = ProjectId("own"), ProjectId("friend"), ProjectId("stranger")
STATES = [state for state in Image.State.values() if state]
VISIBILITIES = Image.Visibility.values()


def record(visibility: int, state: int = Image.STATE_ACTIVE) -> ImageRecord:
    image = Image(
        display_name="golden",
        visibility=Image.Visibility.ValueType(visibility),
        state=Image.State.ValueType(state),
        # Also where it does not count: only SHARED asks for it.
        shared_with=["projects/friend"],
        stored_bytes=7,
        status_message="of payroll",
        sha256="cd" * 32,
    )
    image.source.instance = "projects/own/instances/payroll"
    return ImageRecord(id="i", project=OWN, image=image)


def user(*projects: ProjectId, admin: bool = False) -> Caller:
    roles = frozenset({"admin"}) if admin else frozenset()
    return Caller(kind=Kind.USER, name="x", roles=roles, projects=frozenset(projects))


@pytest.mark.parametrize(("visibility", "state"), list(product(VISIBILITIES, STATES)))
def test_a_project_uses_its_own_images_and_of_others_what_is_shared_and_active(
    visibility: int, state: int
) -> None:
    image, active = record(visibility, state), state == Image.STATE_ACTIVE
    public = active and visibility == Image.VISIBILITY_PUBLIC
    shared = active and visibility == Image.VISIBILITY_SHARED
    assert usable_by(OWN, image)
    assert usable_by(FRIEND, image) == (public or shared)
    assert usable_by(STRANGER, image) == public


@pytest.mark.parametrize(("visibility", "state"), list(product(VISIBILITIES, STATES)))
def test_a_caller_reads_what_one_of_the_projects_may_use_and_admins_everything(
    visibility: int, state: int
) -> None:
    image = record(visibility, state)
    assert readable_by(user(OWN), image)
    assert readable_by(user(admin=True), image)
    assert readable_by(user(STRANGER, FRIEND), image) == usable_by(FRIEND, image)
    assert readable_by(user(), image) == usable_by(STRANGER, image), "a public one needs no project"


def test_a_project_whose_name_begins_like_a_friends_is_a_stranger() -> None:
    image = record(Image.VISIBILITY_SHARED)
    for name in ("friend-2", "frien", "projects/friend", "FRIEND", ""):
        assert not usable_by(ProjectId(name), image)


def test_others_are_shown_what_helps_to_boot_from_it_and_nothing_of_its_owner() -> None:
    entry = Entry(key="k", value=record(Image.VISIBILITY_SHARED), create_revision=1, mod_revision=5)
    for own in (user(OWN), user(admin=True)):
        shown = image_shown_to(own, entry)
        assert shown.source.instance
        assert list(shown.shared_with) == ["projects/friend"]
    foreign = image_shown_to(user(FRIEND), entry)
    assert foreign == Image(
        name="projects/own/images/i",
        uid="i",
        etag="5",
        display_name="golden",
        state=Image.STATE_ACTIVE,
        visibility=Image.VISIBILITY_SHARED,
        sha256="cd" * 32,
    )
    assert entry.value.image.source.instance, "the cached record is not what was changed"
