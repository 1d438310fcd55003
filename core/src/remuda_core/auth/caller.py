"""Who calls, after identity has been established."""

from dataclasses import dataclass
from enum import StrEnum

from remuda_core.ids import HostId, ProjectId

ADMIN = "admin"
"""The role that may do everything in every project."""


class Kind(StrEnum):
    USER = "user"
    SERVICE = "service"
    HOST = "host"
    ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Without roles and projects nobody may do anything in a project."""

    kind: Kind
    name: str
    """User name, service name (`scheduler`), or host UUID; empty for ANONYMOUS."""
    roles: frozenset[str] = frozenset()
    projects: frozenset[ProjectId] = frozenset()

    @property
    def principal(self) -> str:
        """`user/alice`, `service/scheduler`, `host/<uuid>`: what is recorded as requester."""
        return f"{self.kind}/{self.name}" if self.name else str(self.kind)

    @property
    def is_admin(self) -> bool:
        return ADMIN in self.roles

    @property
    def sees_hosts(self) -> bool:
        """May learn what hosts there are, how they are called and what they have left."""
        return self.kind is not Kind.USER or self.is_admin

    @property
    def host_id(self) -> HostId | None:
        return HostId(self.name) if self.kind is Kind.HOST else None

    def may_see(self, project: ProjectId) -> bool:
        """For filtering what `projects/-` and `operations/-` answer."""
        return self.is_admin or project in self.projects


ANONYMOUS = Caller(kind=Kind.ANONYMOUS, name="")
