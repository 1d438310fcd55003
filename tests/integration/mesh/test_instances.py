"""Instances from launch to delete, over the public api, through every service."""

from tests.integration.mesh.conftest import Cluster, Instance


async def test_a_launched_instance_runs_with_an_address_and_a_delete_leaves_nothing(cluster: Cluster) -> None:
    made = await cluster.launch("web")
    assert made.state == Instance.STATE_RUNNING
    assert made.network_interfaces[0].address.startswith("10.78.0.")
    assert made.network_interfaces[0].mac_address
    host = cluster.host_name(made.host)
    assert cluster.mesh.domains()[host] == {made.uid}
    assert cluster.mesh.directories() == {f"{host}/{made.uid}"}
    assert (await cluster.get(made.name)).state == Instance.STATE_RUNNING
    await cluster.delete(made.name)
    assert not any(cluster.mesh.domains().values())
    assert cluster.mesh.directories() == set()
    assert await cluster.keys_left() == set()
