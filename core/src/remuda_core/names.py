"""Resource names: made and taken apart here, nowhere else.

A parser raises RemudaError INVALID_ARGUMENT that names the request's field. Parts are not interpreted:
where a field also takes a short name (`projects/demo/instances/web`), the part is that short name, and the
caller resolves it.
"""

import re
from typing import NamedTuple

from remuda_core.errors import invalid_argument
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

ALL_PROJECTS = ProjectId("-")
"""The project of `projects/-`: all that the caller may see. Only listing and watching rpcs take it."""

_PART = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\Z")


class InstanceName(NamedTuple):
    project: ProjectId
    instance: InstanceId

    def __str__(self) -> str:
        return f"projects/{self.project}/instances/{self.instance}"


class ImageName(NamedTuple):
    project: ProjectId
    image: ImageId

    def __str__(self) -> str:
        return f"projects/{self.project}/images/{self.image}"


class MigrationName(NamedTuple):
    project: ProjectId
    instance: InstanceId
    migration: MigrationId

    def __str__(self) -> str:
        return f"projects/{self.project}/instances/{self.instance}/migrations/{self.migration}"


def project_name(project: ProjectId) -> str:
    return f"projects/{project}"


def quota_name(project: ProjectId) -> str:
    return f"projects/{project}/quota"


def instance_name(project: ProjectId, instance: InstanceId) -> str:
    return str(InstanceName(project, instance))


def image_name(project: ProjectId, image: ImageId) -> str:
    return str(ImageName(project, image))


def migration_name(project: ProjectId, instance: InstanceId, migration: MigrationId) -> str:
    return str(MigrationName(project, instance, migration))


def host_name(host: HostId) -> str:
    return f"hosts/{host}"


def flavor_name(flavor: FlavorId) -> str:
    return f"flavors/{flavor}"


def network_name(network: NetworkId) -> str:
    return f"networks/{network}"


def operation_name(operation: OperationId) -> str:
    return f"operations/{operation}"


def parse_project(name: str, *, field: str = "parent", wildcard: bool = False) -> ProjectId:
    """`wildcard`: `projects/-` is accepted and gives ALL_PROJECTS."""
    if wildcard and name == "projects/-":
        return ALL_PROJECTS
    (project,) = _parts(name, "projects/{project}", field)
    return ProjectId(project)


def parse_quota(name: str, *, field: str = "name") -> ProjectId:
    (project,) = _parts(name, "projects/{project}/quota", field)
    return ProjectId(project)


def parse_instance(name: str, *, field: str = "name") -> InstanceName:
    project, instance = _parts(name, "projects/{project}/instances/{instance}", field)
    return InstanceName(ProjectId(project), InstanceId(instance))


def parse_image(name: str, *, field: str = "name") -> ImageName:
    project, image = _parts(name, "projects/{project}/images/{image}", field)
    return ImageName(ProjectId(project), ImageId(image))


def parse_migration(name: str, *, field: str = "name") -> MigrationName:
    pattern = "projects/{project}/instances/{instance}/migrations/{migration}"
    project, instance, migration = _parts(name, pattern, field)
    return MigrationName(ProjectId(project), InstanceId(instance), MigrationId(migration))


def parse_host(name: str, *, field: str = "name") -> HostId:
    return HostId(_parts(name, "hosts/{host}", field)[0])


def parse_flavor(name: str, *, field: str = "name") -> FlavorId:
    return FlavorId(_parts(name, "flavors/{flavor}", field)[0])


def parse_network(name: str, *, field: str = "name") -> NetworkId:
    return NetworkId(_parts(name, "networks/{network}", field)[0])


def parse_operation(name: str, *, field: str = "name") -> OperationId:
    return OperationId(_parts(name, "operations/{operation}", field)[0])


def project_of(name: str) -> ProjectId | None:
    """The project that a name lies in (ALL_PROJECTS for `projects/-`), None when it lies in none."""
    collection, _, rest = name.partition("/")
    project = rest.partition("/")[0]
    if collection != "projects" or not (project == ALL_PROJECTS or _PART.match(project)):
        return None
    return ProjectId(project)


def collection_of(name: str) -> str:
    """`instances` for `projects/demo/instances/web`; empty when it is no resource name."""
    parts = name.split("/")
    return parts[-2] if len(parts) >= 2 else ""


def _parts(name: str, pattern: str, field: str) -> list[str]:
    wanted, given = pattern.split("/"), name.split("/")
    found = []
    fits = len(wanted) == len(given)
    for want, have in zip(wanted, given, strict=False):
        if want.startswith("{"):
            fits = fits and _PART.match(have) is not None
            found.append(have)
        else:
            fits = fits and want == have
    if not fits:
        raise invalid_argument(field, f"{name!r} is not like {pattern}")
    return found
