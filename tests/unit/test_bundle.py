"""The bundle: what is in it, and that the client predicts with it as the trainer did."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from google.protobuf import json_format

from trainwire import contract
from trainwire.v1 import training_pb2
from trainwire_client.bundle import load_bundle
from trainwire_server.data.prepare import Prepared, Split
from trainwire_server.training import bundle

MakePrepared = Callable[..., Prepared]
MakeRequest = Callable[..., training_pb2.TrainingRequest]
Run = Callable[..., list[training_pb2.TrainingEvent]]
TrainIn = Callable[..., list[training_pb2.TrainingEvent]]
FILES = [
    "MODEL_CARD.md",
    "metrics.json",
    "model.onnx",
    "model.safetensors",
    "preprocessing.json",
    "request.json",
]


@pytest.fixture(scope="module")
def original(
    train_in: TrainIn, make_request: MakeRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, training_pb2.JobSucceeded]:
    """Folder of a bundle and the result it was written with; not to be changed."""
    request = make_request(trainer__epochs="10", request_id="a", display_name="b", labels__c="d")
    job = tmp_path_factory.mktemp("original") / "job"
    return job / "bundle", train_in(job, request)[-1].succeeded


@pytest.fixture
def trained(
    original: tuple[Path, training_pb2.JobSucceeded], tmp_path: Path
) -> tuple[Path, training_pb2.JobSucceeded]:
    """A copy of the test's own."""
    folder, succeeded = original
    return shutil.copytree(folder.parent, tmp_path / "job") / "bundle", succeeded


def raw_windows(prepared: Prepared, split: Split) -> npt.NDArray[np.float64]:
    """Unscaled windows [n, time, features]; scaling them again gives the same float32 bits."""
    rows = split.starts[:, None] + np.arange(prepared.sequence_length)
    scaled = prepared.features[rows].astype(np.float64)
    return np.asarray(scaled * prepared.scale + prepared.mean)


def test_it_holds_the_files_and_nothing_of_the_job(
    trained: tuple[Path, training_pb2.JobSucceeded],
) -> None:
    folder, _ = trained
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert not (folder.parent / "bundle.partial").exists()
    request = json.loads((folder / "request.json").read_text())
    assert not set(contract.NOT_DIGESTED) & set(request)


def test_the_client_predicts_what_the_trainer_measured(
    trained: tuple[Path, training_pb2.JobSucceeded], make_prepared: MakePrepared
) -> None:
    folder, succeeded = trained
    prepared, model = make_prepared(), load_bundle(folder)
    windows = raw_windows(prepared, prepared.test)
    probabilities = model.predict_proba(windows)
    assert probabilities.shape == (60, 3)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(60))
    matrix = np.zeros((3, 3), dtype=int)
    np.add.at(matrix, (prepared.test.labels, probabilities.argmax(axis=1)), 1)
    assert matrix.ravel().tolist() == list(succeeded.test.confusion_matrix)
    own = probabilities[np.arange(60), prepared.test.labels]
    assert -np.log(own).mean() == pytest.approx(succeeded.test.loss, rel=1e-5)
    names = [prepared.class_names[i] for i in probabilities.argmax(axis=1)]
    assert model.predict(windows) == names
    assert len(set(names)) > 1
    assert model.class_names == prepared.class_names
    assert model.feature_columns == prepared.feature_columns
    assert model.sequence_length == prepared.sequence_length


def test_training_its_request_again_gives_the_same_weights(
    trained: tuple[Path, training_pb2.JobSucceeded], run: Run
) -> None:
    folder, _ = trained
    text = (folder / "request.json").read_text()
    request = json_format.Parse(text, training_pb2.TrainingRequest())
    assert load_bundle(folder).request == request
    run(contract.resolve(request), folder="again")
    for name in FILES:
        assert (folder.parents[1] / "again/bundle" / name).read_bytes() == (
            folder / name
        ).read_bytes(), name


def test_describe_says_what_the_files_say(
    trained: tuple[Path, training_pb2.JobSucceeded], make_request: MakeRequest
) -> None:
    folder, succeeded = trained
    model = bundle.describe(folder)
    assert [file.name for file in model.files] == FILES
    for file in model.files:
        data = (folder / file.name).read_bytes()
        assert (file.size_bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert list(model.class_names) == ["hold", "buy", "sell"]
    assert model.test == succeeded.test
    assert not model.HasField("adjusted_test")
    assert model.best_epoch == succeeded.best_epoch
    assert model.request_digest == contract.request_digest(make_request(trainer__epochs="10"))
    parameters = load_bundle(folder).module.parameters()
    assert model.parameter_count == sum(parameter.numel() for parameter in parameters)
    assert not model.name


def test_metrics_and_card_show_the_result(
    trained: tuple[Path, training_pb2.JobSucceeded],
) -> None:
    folder, succeeded = trained
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["best_epoch"] == succeeded.best_epoch
    for name, expected in (("validation", succeeded.validation), ("test", succeeded.test)):
        assert json_format.ParseDict(metrics[name], training_pb2.SplitMetrics()) == expected
        assert {"precision", "recall", "support"} <= set(metrics[name]["classes"][0])
    card = (folder / "MODEL_CARD.md").read_text()
    for row in succeeded.test.classes:
        assert f"| {row.name} | {row.precision:.4f} | {row.recall:.4f} | {row.f1:.4f} |" in card
    for text in ("datasets/sha256-0", "load_bundle", "| train | 257 | 250 |", '"epochs": 10'):
        assert text in card
    assert "Values were missing" not in card


def test_the_card_counts_what_was_missing(
    run: Run, make_request: MakeRequest, make_prepared: MakePrepared, tmp_path: Path
) -> None:
    prepared = replace(make_prepared(), dropped_rows=3, filled_values=17)
    run(make_request(trainer__epochs="1"), prepared)
    card = (tmp_path / "job/bundle/MODEL_CARD.md").read_text()
    assert "3 rows of the table were left out, 17 values" in card


def test_a_new_bundle_takes_the_place_of_an_old_one(
    trained: tuple[Path, training_pb2.JobSucceeded], run: Run, make_request: MakeRequest
) -> None:
    folder, _ = trained
    (folder / "left-over").touch()
    (folder.parent / "bundle.partial").mkdir()
    run(make_request())
    assert sorted(path.name for path in folder.iterdir()) == FILES


@pytest.mark.parametrize("shape", [(8, 3), (2, 7, 3), (2, 8, 4), (2, 3, 8)])
def test_windows_of_another_shape_are_refused(
    shape: tuple[int, ...], trained: tuple[Path, training_pb2.JobSucceeded]
) -> None:
    with pytest.raises(ValueError, match=r"expected \[n, 8 rows, 3 features\]"):
        load_bundle(trained[0]).predict_proba(np.zeros(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_cannot_be_used_are_refused(
    value: float, trained: tuple[Path, training_pb2.JobSucceeded]
) -> None:
    windows = np.zeros((2, 8, 3))
    windows[1, 2, 0] = value
    with pytest.raises(ValueError, match="NaN, infinite or too large"):
        load_bundle(trained[0]).predict_proba(windows)


def test_no_windows_give_no_predictions(
    trained: tuple[Path, training_pb2.JobSucceeded],
) -> None:
    model = load_bundle(trained[0])
    assert model.predict_proba(np.zeros((0, 8, 3))).shape == (0, 3)
    assert model.predict(np.zeros((0, 8, 3))) == []


def test_a_missing_file_is_named(
    trained: tuple[Path, training_pb2.JobSucceeded], tmp_path: Path
) -> None:
    shutil.copytree(trained[0], tmp_path / "copy")
    (tmp_path / "copy/model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_bundle(tmp_path / "copy")


def test_importing_the_loader_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, trainwire_client.bundle;"
        "sys.exit(bool({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from trainwire_client.bundle import load_bundle\n"
        "load_bundle('.')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert "load_bundle needs torch: pip install 'trainwire[torch]'" in ended.stderr


def test_the_loader_needs_no_server(trained: tuple[Path, training_pb2.JobSucceeded]) -> None:
    code = (
        "import sys; sys.modules['trainwire_server'] = None\n"
        "from trainwire_client.bundle import load_bundle\n"
        f"load_bundle({str(trained[0])!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
