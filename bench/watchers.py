"""A thousand watchers of one job in one process: `python -m bench.watchers ADDRESS JOB`.

Says "ready" when all are connected, and at the end of the job, as JSON, each stored event's seconds
from its time, which is before it was committed, to its receipt by each watcher.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import defaultdict
from typing import Any

import grpc

from trainwire.v1 import training_pb2

WATCHERS, CHANNELS = 1_000, 8
PATH = "/trainwire.v1.TrainingService/WatchTraining"
# Without this, channels to one address share a connection.
OPTIONS = (("grpc.use_local_subchannel_pool", 1),)

Received = list[tuple[bytes, float]]


async def watch(call: Any, first: asyncio.Event, received: Received) -> None:
    """Note when each event comes. They are read later: watchers do not share a core in life."""
    async for data in call:
        received.append((data, time.time()))
        first.set()


def lags(received: Received) -> dict[int, list[float]]:
    """Seconds from the time of a stored event to each receipt, by its number."""
    found = defaultdict(list)
    for data, at in received:
        event = training_pb2.TrainingEvent.FromString(data)
        if event.sequence:
            found[event.sequence].append(at - event.time.ToNanoseconds() / 1e9)
    return found


async def main(address: str, job: str) -> None:
    """Watch until the job has ended."""
    channels = [grpc.aio.insecure_channel(address, OPTIONS) for _ in range(CHANNELS)]
    methods: list[Any] = [channel.unary_stream(PATH) for channel in channels]
    request = training_pb2.WatchTrainingRequest(name=job).SerializeToString()
    received: Received = []
    firsts = [asyncio.Event() for _ in range(WATCHERS)]
    watching = [
        asyncio.create_task(watch(methods[number % CHANNELS](request), first, received))
        for number, first in enumerate(firsts)
    ]
    await asyncio.gather(*(first.wait() for first in firsts))
    print("ready", flush=True)
    await asyncio.gather(*watching)
    print(json.dumps(lags(received)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
