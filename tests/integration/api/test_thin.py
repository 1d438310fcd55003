async def test_x(cluster, alice, pieces, launch):
    from remuda.compute.v1 import instance_pb2

    i = await launch("web")
    print(i)
    l = await alice.instances.ListInstances(instance_pb2.ListInstancesRequest(parent="projects/demo"))
    print(l)
