"""CreateInstance: a guest that runs, or nothing at all."""

from remuda.compute.v1.instance_pb2 import Instance
from remuda.compute.v1.operation_pb2 import OperationMetadata


async def test_a_launch_ends_with_a_running_guest_that_the_record_knows(cluster) -> None:
    instance, operation = await cluster.launch()
    await cluster.lead()
    record = await cluster.ended(operation)
    assert record.metadata.state == OperationMetadata.STATE_DONE, record
    status = await cluster.status(instance)
    assert status.state == Instance.STATE_RUNNING
    print(record, status)
