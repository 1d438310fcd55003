"""Affinity of server groups. There are none yet, so that nothing can speak against a host."""

from remuda.compute.v1.moving_pb2 import MigrationCheck

from remuda_scheduler.preflight.facts import Facts
from remuda_scheduler.preflight.rows import NOT_APPLICABLE, row


def group_policy(facts: Facts) -> MigrationCheck | None:
    condition = MigrationCheck.CONDITION_GROUP_POLICY
    return row(facts, condition, NOT_APPLICABLE, source="the instance is in no server group")
