"""What the clients of every language send and must receive."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest
from google.protobuf import json_format

from trainwire.v1 import dataset_pb2, training_pb2
from trainwire_client import TrainingClient

ZEROS = {
    "balancing.use_focal_loss": False,
    "trainer.early_stopping_patience": 0,
    "model.dropout": 0.0,
}
"""A flag, a count and a real number whose defaults are not zero."""
BAD = {"trainer": {"epochs": 0, "learning_rate": 7, "label_smoothing": "NaN"}}
BAD_FIELDS = {
    "data.target": "required: set one of column, threshold, quantile, triple_barrier",
    "trainer.epochs": "0 is not allowed; allowed: [1, 100000]",
    "trainer.label_smoothing": "nan is not allowed; allowed: [0, 0.5]",
    "trainer.learning_rate": "7 is not allowed; allowed: (0, 1)",
}


@pytest.fixture(scope="session")
def csv_file(columns: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV file of 600 rows that no other test uploads."""
    path = tmp_path_factory.mktemp("csv") / "bars.csv"
    pa_csv.write_csv(pa.table(columns(600, seed=11)), path)
    return path


@pytest.fixture(scope="session")
def upload_json() -> Callable[[bytes], str]:
    """The messages of a CSV upload as JSON, one after the other, in chunks of 8 KiB."""

    def write(data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        header = {"format": "DATASET_FORMAT_CSV", "size_bytes": len(data), "sha256": sha256}
        chunks = [data[start : start + 8192] for start in range(0, len(data), 8192)]
        messages = [
            {"header": header},
            *({"chunk": {"data": base64.b64encode(chunk).decode()}} for chunk in chunks),
        ]
        return "\n".join(json.dumps(message) for message in messages)

    return write


@pytest.fixture(scope="session")
def assert_uploaded(csv_file: Path) -> Callable[[dict[str, Any]], None]:
    """Asserts that what a client received is the dataset of `csv_file`."""

    def check(received: dict[str, Any]) -> None:
        dataset = json_format.ParseDict(received, dataset_pb2.Dataset())
        data = csv_file.read_bytes()
        assert dataset.name == f"datasets/sha256-{hashlib.sha256(data).hexdigest()}"
        assert dataset.format == dataset_pb2.DATASET_FORMAT_CSV
        assert (dataset.size_bytes, dataset.row_count) == (len(data), 600)
        names = ["a", "b", "y", "price", "time", "group"]
        assert [column.name for column in dataset.columns] == names

    return check


@pytest.fixture
def zeros_json(request_for: Callable[..., training_pb2.TrainingRequest]) -> dict[str, Any]:
    """A small request that sets `ZEROS`, as JSON."""
    request = request_for(epochs=1, early_stopping_patience=0)
    request.balancing.use_focal_loss = False
    request.model.dropout = 0.0
    return json_format.MessageToDict(request, preserving_proto_field_name=True)


@pytest.fixture(scope="session")
def assert_zeros() -> Callable[[dict[str, Any]], None]:
    """Asserts that the job a client received has `ZEROS` as fields that were set."""

    def check(received: dict[str, Any]) -> None:
        job = json_format.ParseDict(received, training_pb2.TrainingJob())
        assert set(ZEROS) <= set(job.set_fields)
        for path, value in ZEROS.items():
            group, name = path.split(".")
            assert getattr(getattr(job.request, group), name) == value
        # Not set, and so not zero but the default.
        assert "trainer.weight_decay" not in job.set_fields
        assert job.request.trainer.weight_decay == 0.01

    return check


@pytest.fixture(scope="session")
def assert_events() -> Callable[..., list[training_pb2.TrainingEvent]]:
    """Asserts that received events are a whole log from a number on; returns the numbered ones."""

    def check(
        received: list[dict[str, Any]], first: int, terminal: str
    ) -> list[training_pb2.TrainingEvent]:
        events = [json_format.ParseDict(event, training_pb2.TrainingEvent()) for event in received]
        numbered = [event for event in events if event.sequence]
        numbers = list(range(first, first + len(numbered)))
        assert [event.sequence for event in numbered] == numbers
        kinds = [event.WhichOneof("event") for event in numbered]
        assert kinds[-1] == terminal
        assert not {"succeeded", "failed", "cancelled"} & set(kinds[:-1])
        return numbered

    return check


@pytest.fixture(scope="session")
def cancelled_job(
    client: TrainingClient,
    dataset: dataset_pb2.Dataset,
    small: Callable[..., training_pb2.TrainingRequest],
) -> training_pb2.TrainingJob:
    """A job that was cancelled after some of its 50,000 epochs; resuming leaves it as it is."""
    job = client.submit(small(dataset.name, epochs=50_000, early_stopping_patience=0))
    for event in client.watch(job):
        if event.HasField("epoch") and event.epoch.epoch == 3:
            client.cancel(job)
    return client.get(job)


@pytest.fixture(scope="session")
def bad_request() -> tuple[dict[str, Any], dict[str, str]]:
    """A request with four things wrong, and what the answer says of each."""
    return BAD, BAD_FIELDS
