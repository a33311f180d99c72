"""Many watchers of one job in one process: `watching_clients.py ADDRESS JOB READERS HOLDERS`.

Readers read to the end of the stream, holders open one and never read. Says "ready" when every
stream is open, and at the end of the readers' streams, as JSON, what each of them was sent: each
different sequence once.
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import json
import resource
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import grpc

from trainwire.v1 import training_pb2

CHANNELS = 8
OPTIONS = (
    # Without this, channels to one address share a connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 16 * 2**20),
)
PATH = "/trainwire.v1.TrainingService/WatchTraining"


@dataclass
class Seen:
    """What all readers were sent."""

    sequences: collections.Counter[tuple[int, str]] = field(default_factory=collections.Counter)
    seconds: list[float] = field(default_factory=list)
    progress: int = 0


async def read(call: Any, joined: float, first: asyncio.Event, seen: Seen) -> None:
    """Read a stream to its end. Seconds are those from the event's time to its arrival."""
    digest, events = hashlib.sha256(), 0
    async for data in call:
        first.set()
        event = training_pb2.TrainingEvent.FromString(data)
        if not event.sequence:
            seen.progress += 1
            continue
        events += 1
        digest.update(event.SerializeToString(deterministic=True))
        at = event.time.seconds + event.time.nanos / 1e9
        if at > joined:
            seen.seconds.append(time.time() - at)
    seen.sequences[events, digest.hexdigest()] += 1


async def main(address: str, job: str, readers: int, holders: int) -> None:
    channels = [grpc.aio.insecure_channel(address, OPTIONS) for _ in range(CHANNELS)]
    calls: list[Any] = [channel.unary_stream(PATH) for channel in channels]
    request = training_pb2.WatchTrainingRequest(name=job).SerializeToString()
    held = [calls[i % CHANNELS](request) for i in range(holders)]
    seen, firsts, tasks = Seen(), [], []
    for i in range(readers):
        firsts.append(asyncio.Event())
        call = calls[i % CHANNELS](request)
        # What comes within a few seconds is still the rush of all who join.
        tasks.append(asyncio.create_task(read(call, time.time() + 5, firsts[-1], seen)))
    await asyncio.gather(*(first.wait() for first in firsts))
    print("ready", flush=True)  # noqa: T201
    await asyncio.gather(*tasks)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({  # noqa: T201
        "sequences": [[*sequence, times] for sequence, times in seen.sequences.items()],
        "seconds": sorted(seen.seconds),
        "progress": seen.progress,
        "cpu_seconds": used.ru_utime + used.ru_stime,
    }), flush=True)  # fmt: skip
    for call in held:
        call.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
