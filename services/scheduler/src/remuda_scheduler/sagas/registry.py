"""All sagas by action."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from remuda_scheduler.engine.saga import Saga
from remuda_scheduler.sagas import (
    create_instance,
    delete_instance,
    live_migrate,
    reconcile_instance,
    snapshot_instance,
    start_instance,
    stop_instance,
)

SAGAS: Mapping[str, Saga[Any]] = MappingProxyType(
    {
        saga.action: saga
        for saga in (
            create_instance.SAGA,
            delete_instance.SAGA,
            start_instance.SAGA,
            stop_instance.SAGA,
            live_migrate.SAGA,
            reconcile_instance.SAGA,
            snapshot_instance.SAGA,
        )
    }
)
