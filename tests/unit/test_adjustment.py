"""Calibrated probabilities and decision thresholds of a trained model, from training to use."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet
import pytest

from trainwire.v1 import training_pb2
from trainwire_client.bundle import load_bundle
from trainwire_client.onnx_model import load_onnx_model
from trainwire_client.predictions import predict
from trainwire_server.data.prepare import Prepared
from trainwire_server.errors import JobFailure
from trainwire_server.training import bundle
from trainwire_server.training.fit import Cancelled
from trainwire_server.training.setup import set_up

MakePrepared = Callable[..., Prepared]
MakeRequest = Callable[..., training_pb2.TrainingRequest]
TrainIn = Callable[..., list[training_pb2.TrainingEvent]]
BOTH = {"prediction__calibrate_probabilities": "true", "prediction__tune_thresholds": "true"}


@dataclass(frozen=True)
class Trained:
    """The same training without and with `prediction`: events, and the folder of the job."""

    plain: list[training_pb2.TrainingEvent]
    events: list[training_pb2.TrainingEvent]
    folder: Path

    @property
    def adjusted(self) -> training_pb2.AdjustedPrediction:
        return self.events[-1].succeeded.adjusted


@pytest.fixture(scope="module")
def trained(
    train_in: TrainIn, make_request: MakeRequest, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    folder = tmp_path_factory.mktemp("adjustment")
    plain = train_in(folder / "plain", make_request(trainer__epochs="6"))
    events = train_in(folder / "adjusted", make_request(trainer__epochs="6", **BOTH))
    return Trained(plain, events, folder)


def test_the_model_says_what_it_predicts_with(trained: Trained) -> None:
    model = bundle.describe(trained.folder / "adjusted/bundle")
    assert model.adjusted_test == trained.adjusted.test
    assert model.test == trained.events[-1].succeeded.test


def raw_test_windows(prepared: Prepared) -> npt.NDArray[np.float64]:
    rows = prepared.test.starts[:, None] + np.arange(prepared.sequence_length)
    return np.asarray(prepared.features[rows] * prepared.scale + prepared.mean)


def matrix_of(labels: npt.NDArray[np.int64], names: list[str], prepared: Prepared) -> list[int]:
    matrix = np.zeros((3, 3), dtype=int)
    np.add.at(matrix, (labels, np.array([prepared.class_names.index(name) for name in names])), 1)
    return [int(cell) for cell in matrix.ravel()]


def test_it_is_reported_apart(trained: Trained) -> None:
    plain, found = trained.plain[-1].succeeded, trained.events[-1].succeeded
    assert not plain.HasField("adjusted")
    adjusted = found.adjusted
    found = training_pb2.JobSucceeded.FromString(found.SerializeToString())
    found.ClearField("adjusted")
    assert found == plain
    assert sum(adjusted.decision_thresholds) == pytest.approx(1)
    assert len(set(adjusted.decision_thresholds)) == 3
    assert adjusted.validation.macro_f1 > plain.validation.macro_f1
    assert adjusted.validation.loss < plain.validation.loss
    assert adjusted.test.confusion_matrix != plain.test.confusion_matrix
    assert adjusted.calibration_error.after < adjusted.calibration_error.before
    intervals = {each.metric: each for each in adjusted.test_intervals}
    assert sorted(intervals) == sorted(each.metric for each in plain.test_intervals)
    accuracy = intervals["accuracy"]
    assert accuracy.lower <= adjusted.test.accuracy <= accuracy.upper


@pytest.mark.usefixtures("without_onnx")
@pytest.mark.parametrize("one", BOTH)
def test_one_comes_without_the_other(
    one: str, trained: Trained, train_in: TrainIn, make_request: MakeRequest, tmp_path: Path
) -> None:
    events = train_in(tmp_path / "job", make_request(trainer__epochs="6", **{one: "true"}))
    plain, adjusted = events[-1].succeeded, events[-1].succeeded.adjusted
    calibrated = one.endswith("probabilities")
    assert adjusted.HasField("temperature") == adjusted.HasField("calibration_error") == calibrated
    assert bool(adjusted.decision_thresholds) != calibrated
    same = adjusted.test.confusion_matrix == plain.test.confusion_matrix
    assert same == calibrated
    # Of the plain loss the difference is rounding.
    assert (adjusted.test.loss == pytest.approx(plain.test.loss, rel=1e-6)) != calibrated
    if calibrated:
        assert adjusted.temperature == trained.adjusted.temperature


def test_without_it_the_files_are_those_of_the_network(trained: Trained) -> None:
    plain, adjusted = trained.folder / "plain/bundle", trained.folder / "adjusted/bundle"
    names = {path.name for path in plain.iterdir()}
    assert {path.name for path in adjusted.iterdir()} - names == {"postprocessing.json"}
    for name in ("model.safetensors", "preprocessing.json"):
        assert (plain / name).read_bytes() == (adjusted / name).read_bytes()
    assert load_onnx_model(plain).decision_thresholds == []
    assert "decision_thresholds" not in (plain / "model.onnx").read_bytes().decode("latin-1")
    assert "calibrat" not in (plain / "metrics.json").read_text()
    assert "As the model predicts" not in (plain / "MODEL_CARD.md").read_text()


def test_the_bundle_predicts_what_was_measured(
    trained: Trained, make_prepared: MakePrepared, tmp_path: Path
) -> None:
    folder, prepared = trained.folder / "adjusted/bundle", make_prepared()
    expected = trained.adjusted.test
    windows, labels = raw_test_windows(prepared), prepared.test.labels
    for model in (load_bundle(folder), load_onnx_model(folder)):
        predicted = model.predict(windows)
        assert matrix_of(labels, predicted, prepared) == list(expected.confusion_matrix)
        own = model.predict_proba(windows)[np.arange(60), labels]
        assert -np.log(own.astype(np.float64)).mean() == pytest.approx(expected.loss, rel=1e-5)
    rows = prepared.features * prepared.scale + prepared.mean
    columns = dict(zip(prepared.feature_columns, rows.T, strict=True))
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "bars.parquet")
    table = predict(folder, tmp_path / "bars.parquet").table
    ends = prepared.test.starts + prepared.sequence_length - 1
    found = dict(zip(table["row"].to_pylist(), table["predicted"].to_pylist(), strict=True))
    assert [found[end] for end in ends.tolist()] == predicted


def test_files_and_card_say_what_was_used(trained: Trained, make_prepared: MakePrepared) -> None:
    folder, adjusted = trained.folder / "adjusted/bundle", trained.adjusted
    stored = json.loads((folder / "postprocessing.json").read_text())
    thresholds = list(adjusted.decision_thresholds)
    assert stored == {"temperature": adjusted.temperature, "decision_thresholds": thresholds}
    metrics = json.loads((folder / "metrics.json").read_text())["adjusted"]
    assert metrics["test"]["macro_f1"] == adjusted.test.macro_f1
    card = (folder / "MODEL_CARD.md").read_text()
    assert f"| hold | {thresholds[0]:.4f} | {adjusted.test.classes[0].precision:.4f} |" in card
    assert f"temperature {adjusted.temperature:.4f}" in card
    code = card.split("```python\n")[1].split("```")[0].replace("PATH/OF/THIS/FOLDER", str(folder))
    windows = raw_test_windows(make_prepared())
    known = {"windows": windows}
    exec(code, known)
    assert known["predicted"] == load_bundle(folder).predict(windows)


def test_a_lost_file_is_not_taken_for_a_plain_model(trained: Trained, tmp_path: Path) -> None:
    for path in (trained.folder / "adjusted/bundle").iterdir():
        if path.name != "postprocessing.json":
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(FileNotFoundError, match=r"postprocessing\.json"):
        load_bundle(tmp_path)


# ------------------------------------------------------------------------ runs that stop


@pytest.mark.usefixtures("without_onnx")
def test_a_resumed_run_ends_with_the_same(
    trained: Trained, train_in: TrainIn, make_request: MakeRequest, tmp_path: Path
) -> None:
    request = make_request(trainer__epochs="6", **BOTH)
    halfway = iter([False] * 3 + [True] * 9)
    with pytest.raises(Exception, match="drained after 3 epochs"):
        train_in(tmp_path / "job", request, draining=lambda: next(halfway))
    assert train_in(tmp_path / "job", request)[-1] == trained.events[-1]


@pytest.mark.usefixtures("without_onnx")
def test_a_cancel_is_heard_while_validation_is_read_again(
    make_request: MakeRequest, make_prepared: MakePrepared, tmp_path: Path
) -> None:
    from trainwire_server.training.fit import train

    asked = [0]

    def count() -> bool:
        asked[0] += 1
        return asked[0] > limit

    def run(name: str, **changes: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        asked[0] = 0
        list(train(make_request(trainer__epochs="1", **changes), make_prepared(), folder, 1, count))

    limit = 10**9
    run("plain")
    limit = asked[0]
    with pytest.raises(Cancelled):
        run("adjusted", **BOTH)


# ------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("one", BOTH)
def test_more_classes_than_fifty_are_refused_before_training(
    one: str, make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    many = replace(make_prepared(), class_names=[str(i) for i in range(51)])
    with pytest.raises(JobFailure, match="take up to 50 classes; there are 51") as refused:
        set_up(make_request(**{one: "true"}), many, 1)
    assert refused.value.reason == training_pb2.FAILURE_REASON_TOO_MANY_CLASSES
    path = one.replace("__", ".")
    assert [violation.field for violation in refused.value.fields] == [path]
    set_up(make_request(), many, 1)
