"""A process that wants to lead, for tests that kill or stop it.

Prints one JSON object for each thing that happens to it. While it leads it writes `<prefix>written`, as fast
as etcd answers, through fenced transactions only; the value names the epoch it believes in.
"""

import argparse
import asyncio
import json
import sys

from remuda_core.etcd.client import Etcd, EtcdConfig
from remuda_core.etcd.election import Election, Leadership
from remuda_core.etcd.errors import NotLeader, OutcomeUnknown, Unavailable
from remuda_core.etcd.ops import put


def tell(**words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


async def lead(leadership: Leadership, prefix: str) -> None:
    writes = 0
    while True:
        value = b"%d" % leadership.epoch
        try:
            await leadership.txn(success=[put(prefix + "written", value)])
        except NotLeader as error:
            tell(event="refused", epoch=leadership.epoch, writes=writes, reason=str(error))
            return
        except (OutcomeUnknown, Unavailable):
            continue
        writes += 1
        if writes == 1:
            tell(event="leads", epoch=leadership.epoch)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("endpoint")
    parser.add_argument("prefix")
    parser.add_argument("name")
    parser.add_argument("ttl", type=int)
    options = parser.parse_args()
    async with Etcd.open(EtcdConfig(endpoints=(options.endpoint,))) as etcd:
        election = Election(etcd, options.prefix + "leader", options.name.encode(), options.ttl)
        tell(event="campaigns")
        while True:
            await lead(await election.campaign(), options.prefix)


asyncio.run(main())
