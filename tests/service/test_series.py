"""Labelled series from the upload to the prediction, on a real server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from trainwire.v1 import dataset_pb2, training_pb2
from trainwire_client import TrainingClient
from trainwire_client.bundle import load_bundle
from trainwire_client.errors import (
    DatasetUnsuitableError,
    InvalidRequestError,
    JobFailedError,
)

CHANNELS, STEPS = 3, 16
Small = Callable[..., training_pb2.TrainingRequest]


def make_series(rows: int, seed: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[Any]]:
    """Waves of two frequencies and their names: float64 [rows, channels, steps] and text [rows]."""
    random = np.random.default_rng(seed)
    fast = np.arange(rows) % 2
    phase = random.uniform(0, 2 * np.pi, (rows, CHANNELS, 1))
    waves = np.sin(np.arange(STEPS) * (0.5 + fast[:, None, None]) + phase)
    noise = 0.1 * random.normal(size=waves.shape)
    return 50 + 7 * (waves + noise), np.where(fast, "fast", "slow")


def write_ts(path: Path, values: npt.NDArray[np.float64], labels: npt.NDArray[Any]) -> Path:
    rows = zip(values.tolist(), labels, strict=True)
    lines = [":".join(",".join(map(repr, channel)) for channel in row) + f":{y}" for row, y in rows]
    header = "@timeStamps false\n@univariate false\n@classLabel true fast slow\n@data\n"
    path.write_text(header + "\n".join(lines))
    return path


@pytest.fixture(scope="module")
def waves(client: TrainingClient) -> dataset_pb2.Dataset:
    """The columns x_0, x_1, x_2, label and part, of arrays."""
    values, labels = make_series(90, seed=0)
    part = np.array(["train"] * 60 + ["test"] * 30)
    return client.upload({"x": values, "label": labels, "part": part})


def request_for_series(small: Small, dataset: str, **trainer: Any) -> training_pb2.TrainingRequest:
    request = small(dataset, **trainer)
    request.data.samples.SetInParent()
    request.data.column.name = "label"
    return request


def test_the_profile_tells_the_length_of_the_series(waves: dataset_pb2.Dataset) -> None:
    assert [column.name for column in waves.columns] == ["x_0", "x_1", "x_2", "label", "part"]
    for column in waves.columns[:CHANNELS]:
        assert column.type == dataset_pb2.COLUMN_TYPE_LIST
        assert column.list_lengths == dataset_pb2.ListLengths(shortest=STEPS, longest=STEPS)
        assert not column.HasField("first_unusable_row")


@pytest.mark.parametrize("split", ["chronological", "stratified", "split_column"])
def test_series_are_learnt_and_predicted_as_they_were_tested(
    client: TrainingClient, waves: dataset_pb2.Dataset, small: Small, tmp_path: Path, split: str
) -> None:
    request = request_for_series(small, waves.name, epochs=30, learning_rate=0.01, batch_size=16)
    request.model.dropout = 0.1
    getattr(request.data, split).SetInParent()
    if split == "split_column":
        request.data.split_column.name = "part"
    events = list(client.train(request))
    started = next(event.started for event in events if event.HasField("started"))
    sizes = [getattr(started, name) for name in ("train", "validation", "test")]
    expected = {"chronological": [62, 14, 14], "stratified": [62, 14, 14]}
    assert [size.windows for size in sizes] == expected.get(split, [48, 12, 30])
    assert [size.rows for size in sizes] == [size.windows for size in sizes]
    assert list(started.feature_columns) == ["x_0", "x_1", "x_2"]
    done = events[-1].succeeded
    assert done.test.accuracy > 0.9
    bundle = load_bundle(client.download(done.model, tmp_path))
    assert bundle.sequence_length == STEPS
    values, labels = make_series(90, seed=0)
    rows = {"chronological": slice(76, 90), "split_column": slice(60, 90)}
    if split in rows:
        same = np.array(bundle.predict(values[rows[split]])) == labels[rows[split]]
        assert same.mean() == done.test.accuracy
    with pytest.raises(ValueError, match=r"expected \[n, 3 channels, 16 values\]"):
        bundle.predict(values.transpose(0, 2, 1))
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert "a series of 16 steps in 3 channels" in card
    assert "[n, 3, 16]" in card
    assert "overlap" not in card


def test_files_and_arrays_of_the_same_series_train_the_same_model(
    client: TrainingClient, small: Small, tmp_path: Path
) -> None:
    values, labels = make_series(60, seed=1)
    paths = [
        write_ts(tmp_path / "A_TEST.ts", values[40:], labels[40:]),
        write_ts(tmp_path / "A_TRAIN.ts", values[:40], labels[:40]),
    ]
    split = np.array(["train"] * 40 + ["test"] * 20)
    dataset = client.upload({"channel": values, "label": labels, "split": split})
    assert client.upload(paths).name == dataset.name
    request = request_for_series(small, dataset.name)
    request.data.split_column.name = "split"
    (plan,) = [client.validate(request).plan.started]
    assert list(plan.feature_columns) == ["channel_0", "channel_1", "channel_2"]
    assert (plan.train.windows, plan.validation.windows, plan.test.windows) == (32, 8, 20)


def test_another_seed_gives_another_stratified_split(
    client: TrainingClient, waves: dataset_pb2.Dataset, small: Small, tmp_path: Path
) -> None:
    """Seen in the scaler, which is fitted on the rows that train."""
    means: list[list[float]] = []
    for seed in (1, 1, 2):
        request = request_for_series(small, waves.name, epochs=1, seed=seed)
        request.data.stratified.SetInParent()
        folder = tmp_path / str(len(means))
        bundle = load_bundle(client.download(client.wait(client.submit(request)).model, folder))
        means.append(bundle.mean.tolist())
    assert means[0] == means[1] != means[2]


def test_uneven_series_are_refused_when_submitted(client: TrainingClient, small: Small) -> None:
    table = pa.table(
        {
            "x": [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0]],
            "y": [[1.0, 2.0, None]] * 3,
            "z": [[1.0, 2.0]] * 3,
            "label": ["a", "b", "a"],
        }
    )
    request = request_for_series(small, client.upload(table).name)
    with pytest.raises(DatasetUnsuitableError) as refused:
        client.submit(request)
    told = [violation.description for violation in refused.value.violations]
    assert {violation.field for violation in refused.value.violations} == {
        "data.samples.feature_columns"
    }
    assert any("'x' holds lists of 2 to 3 values" in text and "row 2" in text for text in told)
    assert any("'y' has 3 missing values, the first in row 0" in text for text in told)
    assert any("'z' holds lists of 2 values, but 'x' of 3" in text for text in told)


def test_text_of_csv_is_no_series(client: TrainingClient, small: Small, tmp_path: Path) -> None:
    file = tmp_path / "series.csv"
    file.write_text('x,label\n"[1, 2, 3]",a\n"[4, 5, 6]",b\n')
    with pytest.raises(DatasetUnsuitableError, match="CSV has no lists"):
        client.submit(request_for_series(small, client.upload(file).name))


def test_overlapping_windows_are_not_split_by_chance(
    client: TrainingClient, waves: dataset_pb2.Dataset, small: Small
) -> None:
    request = small(waves.name)
    request.data.stratified.SetInParent()
    with pytest.raises(
        InvalidRequestError, match=r"data\.stratified: not allowed while"
    ) as refused:
        client.submit(request)
    assert [violation.field for violation in refused.value.violations] == ["data.stratified"]


def test_an_unknown_mark_ends_the_job(client: TrainingClient, small: Small) -> None:
    values, labels = make_series(30, seed=2)
    part = np.array(["train"] * 20 + ["dev"] * 10)
    dataset = client.upload({"x": values, "label": labels, "part": part})
    request = request_for_series(small, dataset.name)
    request.data.split_column.name = "part"
    with pytest.raises(JobFailedError, match="holds 'dev'"):
        client.wait(client.submit(request))
