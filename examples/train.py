"""From a file of your own to a finished training: python examples/train.py FILE LABEL [TARGET]."""

from __future__ import annotations

import sys

from trainwire.v1 import training_pb2
from trainwire_client import InvalidRequestError, TrainingClient


def main(file: str, label: str, target: str = "127.0.0.1:50051") -> None:
    """Upload, train, show every epoch, download the model."""
    with TrainingClient(target) as client:
        request = training_pb2.TrainingRequest(dataset=client.upload(file).name)
        request.data.column.name = label
        request.data.windows.sequence_length = 30
        request.trainer.epochs = 10
        request.trainer.learning_rate = 0.001
        # What is left out has the contract's default; 0 and False are values like any other.
        request.trainer.early_stopping_patience = 0
        request.balancing.use_focal_loss = False
        try:
            job = client.submit(request)
        except InvalidRequestError as error:
            for violation in error.violations:
                print(f"{violation.field}: {violation.description}")
            raise SystemExit(2) from None
        for event in client.watch(job):
            if event.HasField("epoch"):
                epoch = event.epoch
                print(f"epoch {epoch.epoch}/{epoch.epochs}: loss {epoch.validation.loss:.4f}")
        model = client.wait(job).model
        print(f"{model} is in {client.download(model, 'model')}")


if __name__ == "__main__":
    main(*sys.argv[1:])
