"""Resource names, made and taken apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from remuda_core import names
from remuda_core.errors import Reason, RemudaError
from remuda_core.ids import (
    FlavorId,
    HostId,
    ImageId,
    InstanceId,
    MigrationId,
    NetworkId,
    OperationId,
    ProjectId,
)

PARTS = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,20}[a-z0-9])?", fullmatch=True)


@given(PARTS, PARTS, PARTS)
def test_a_name_that_is_made_can_be_taken_apart(a: str, b: str, c: str) -> None:
    project = ProjectId(a)
    assert names.parse_project(names.project_name(project)) == a
    assert names.parse_instance(names.instance_name(project, InstanceId(b))) == (a, b)
    assert names.parse_image(names.image_name(project, ImageId(b))) == (a, b)
    assert names.parse_migration(names.migration_name(project, InstanceId(b), MigrationId(c))) == (a, b, c)
    assert names.parse_host(names.host_name(HostId(a))) == a
    assert names.parse_flavor(names.flavor_name(FlavorId(a))) == a
    assert names.parse_network(names.network_name(NetworkId(a))) == a
    assert names.parse_operation(names.operation_name(OperationId(a))) == a


@pytest.mark.parametrize(
    "name",
    [
        "",
        "web",
        "projects/demo",
        "projects/demo/instances",
        "projects/demo/instances/",
        "projects/demo/instances/a/b",
        "projects/demo/images/a",
        "projects/../instances/a",
        "projects/demo/instances/a\n",
        "projects/-/instances/a",
        "/projects/demo/instances/a",
        f"projects/demo/instances/{'a' * 300}",
    ],
)
def test_what_is_not_an_instance_name_is_refused_with_the_field(name: str) -> None:
    with pytest.raises(RemudaError) as caught:
        names.parse_instance(name, field="instance.name")
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert [violation.subject for violation in caught.value.violations] == ["instance.name"]


def test_all_projects_are_named_only_where_that_is_allowed() -> None:
    assert names.parse_project("projects/-", wildcard=True) == names.ALL_PROJECTS
    with pytest.raises(RemudaError, match="projects/-"):
        names.parse_project("projects/-")


def test_the_project_of_a_name_is_its_first_part() -> None:
    assert names.project_of("projects/demo/instances/web") == "demo"
    assert names.project_of("projects/-") == names.ALL_PROJECTS
    for name in ("", "hosts/a", "projects", "projects/", "projects/../x", "operations/1"):
        assert names.project_of(name) is None


def test_the_collection_of_a_name_is_its_last_kind() -> None:
    assert names.collection_of("projects/demo/instances/web/migrations/1") == "migrations"
    assert names.collection_of("web") == ""
