"""Names that people type: a display name in the place of a UUID. Answered by etcd, so never out of date."""

import uuid
from dataclasses import dataclass

from remuda_core import names
from remuda_core.errors import invalid_argument, not_found
from remuda_core.etcd.client import Etcd
from remuda_core.etcd.keys import Keys
from remuda_core.ids import HostId, ImageId, InstanceId
from remuda_core.names import ImageName, InstanceName


def is_uuid(text: str) -> bool:
    """In the canonical form: lower case, with hyphens."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def check_display_name(text: str, field: str) -> None:
    """A display name that looks like a UUID could shadow another resource's id; its form is in the .proto."""
    if not text:
        raise invalid_argument(field, "is required")
    if is_uuid(text):
        raise invalid_argument(field, "must not look like a UUID")


@dataclass(frozen=True, slots=True)
class Resolver:
    etcd: Etcd
    keys: Keys

    async def instance(self, name: str, *, field: str = "name") -> InstanceName:
        """Says nothing of whether the instance exists when the name holds a UUID. Raises NOT_FOUND."""
        parsed = names.parse_instance(name, field=field)
        if is_uuid(parsed.instance):
            return parsed
        uid = await self._uuid(self.keys.instance_name(parsed.project, parsed.instance), name)
        return InstanceName(parsed.project, InstanceId(uid))

    async def image(self, name: str, *, field: str = "name") -> ImageName:
        parsed = names.parse_image(name, field=field)
        if is_uuid(parsed.image):
            return parsed
        uid = await self._uuid(self.keys.image_name(parsed.project, parsed.image), name)
        return ImageName(parsed.project, ImageId(uid))

    async def host(self, name: str, *, field: str = "name") -> HostId:
        host = names.parse_host(name, field=field)
        if is_uuid(host):
            return host
        return HostId(await self._uuid(self.keys.host_name(host), name))

    async def _uuid(self, key: str, name: str) -> str:
        kv = await self.etcd.get(key)
        if kv is None:
            raise not_found(name)
        return kv.value.decode()
