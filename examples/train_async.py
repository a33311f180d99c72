"""The same with asyncio: python examples/train_async.py FILE LABEL [TARGET]."""

from __future__ import annotations

import asyncio
import sys

from trainwire.v1 import training_pb2
from trainwire_client.aio import TrainingClient


async def main(file: str, label: str, target: str = "127.0.0.1:50051") -> None:
    """Upload, train, show every epoch."""
    async with TrainingClient(target) as client:
        dataset = await client.upload(file)
        request = training_pb2.TrainingRequest(dataset=dataset.name)
        request.data.column.name = label
        request.data.windows.sequence_length = 30
        request.trainer.epochs = 3
        async for event in client.train(request):
            if event.HasField("epoch"):
                print(f"epoch {event.epoch.epoch}: loss {event.epoch.validation.loss:.4f}")
            elif event.HasField("succeeded"):
                print(f"{event.succeeded.model}: accuracy {event.succeeded.test.accuracy:.3f}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
