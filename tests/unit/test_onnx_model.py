"""The ONNX file: that it computes what the network computes, from raw values on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch

from trainwire.architectures.build import build
from trainwire.architectures.fitted import FittedNetwork
from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared
from trainwire_server.training import onnx_model
from trainwire_server.training.checkpoint import Weights, copy_weights

MakePrepared = Callable[..., Prepared]
MakeRequest = Callable[..., training_pb2.TrainingRequest]
Run = Callable[..., list[training_pb2.TrainingEvent]]

ARCHITECTURES = {
    "hybrid_cnn_lstm": {},
    "hybrid_cnn_lstm, other layers": {
        "model__hybrid_cnn_lstm__conv_channels": "16",
        "model__hybrid_cnn_lstm__normalization": "INSTANCE_NORM",
        "model__hybrid_cnn_lstm__convolution_head": "true",
    },
    "linear": {"model__linear__pool_size": "2"},
    "inception_time": {"model__inception_time__depth": "3", "model__inception_time__filters": "4"},
    "mini_rocket": {"model__mini_rocket__features_per_kernel": "4"},
}


@pytest.fixture
def far_away(make_prepared: MakePrepared) -> Prepared:
    """Features of which the raw values are about a million and differ by little."""
    return replace(make_prepared(), mean=np.array([1e6, -1e6, 0.0]), scale=np.full(3, 1e-3))


def network_of(request: training_pb2.TrainingRequest, prepared: Prepared) -> torch.nn.Module:
    torch.manual_seed(0)
    network = build(request.model, 3, 3, 8).eval()
    if isinstance(network, FittedNetwork):
        windows = torch.from_numpy(prepared.features).unfold(0, 8, 1)
        network.fit_to(
            windows, torch.arange(200), torch.arange(200) % 3, torch.ones(3, dtype=torch.float64)
        )
    # Not all zero, as the last layer of some networks is at first.
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def scaled_windows(prepared: Prepared) -> npt.NDArray[np.float32]:
    rows = prepared.test.starts[:, None] + np.arange(8)
    return np.asarray(prepared.features[rows])


def compute(file: bytes, windows: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(file)
    (found,) = session.run(["probabilities"], {"windows": windows})
    assert found.dtype == np.float32
    return np.asarray(found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_computes_what_the_network_computes(
    architecture: str, far_away: Prepared, make_request: MakeRequest
) -> None:
    request = make_request(**ARCHITECTURES[architecture])
    network = network_of(request, far_away)
    file = onnx_model.export(request, far_away, copy_weights(network), at_once=128)
    scaled = scaled_windows(far_away)
    with torch.inference_mode():
        logits = network(torch.from_numpy(scaled).transpose(1, 2))
    expected = logits.softmax(dim=1).numpy()
    assert np.ptp(expected, axis=0).max() > 0.01
    raw = scaled * far_away.scale + far_away.mean
    for count in (1, 2, 60):
        assert compute(file, raw[:count]) == pytest.approx(expected[:count], abs=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("architecture", ["hybrid_cnn_lstm", "mini_rocket"])
def test_a_window_that_cannot_be_used_has_no_probabilities(
    architecture: str, value: float, make_prepared: MakePrepared, make_request: MakeRequest
) -> None:
    request, prepared = make_request(**ARCHITECTURES[architecture]), make_prepared()
    windows = scaled_windows(prepared) * prepared.scale + prepared.mean
    windows[1, 2, 0] = value
    file = onnx_model.export(request, prepared, weights_of(request, prepared), at_once=128)
    broken = np.isnan(compute(file, windows)).all(axis=1)
    assert np.flatnonzero(broken).tolist() == [1]


def test_rows_are_scaled_by_those_before_them(
    make_prepared: MakePrepared, make_request: MakeRequest
) -> None:
    request = make_request(data__scaling="ROLLING", data__scaling_window="20")
    prepared = make_prepared(history=19)
    raw = prepared.raw_windows
    assert raw is not None
    network = network_of(request, prepared)
    file = onnx_model.export(request, prepared, copy_weights(network), at_once=128)
    session = onnxruntime.InferenceSession(file)
    assert session.get_inputs()[0].shape == ["n", 27, 3]
    assert json.loads(session.get_modelmeta().custom_metadata_map["history"]) == 19
    windows, scaled = raw.values[-60:].copy(), scaled_windows(prepared)
    with torch.inference_mode():
        expected = network(torch.from_numpy(scaled).transpose(1, 2)).softmax(dim=1).numpy()
    assert np.ptp(expected, axis=0).max() > 0.01
    assert compute(file, windows) == pytest.approx(expected, abs=1e-5)
    # Too large to be squared, in a row that others are scaled by.
    windows[3, 0, 1] = 1e300
    assert np.flatnonzero(np.isnan(compute(file, windows)).any(axis=1)).tolist() == [3]
    # The file is held against raw windows: with others it is not written.
    other = replace(prepared, raw_windows=replace(raw, values=raw.values[::-1].copy()))
    with pytest.raises(onnx_model.NotExported, match="differ"):
        onnx_model.export(request, other, copy_weights(network), at_once=128)


def weights_of(request: training_pb2.TrainingRequest, prepared: Prepared) -> Weights:
    return copy_weights(network_of(request, prepared))


def test_labelled_series_come_channel_by_channel(
    far_away: Prepared, make_request: MakeRequest
) -> None:
    request = make_request()
    weights = weights_of(request, far_away)
    windows = scaled_windows(far_away) * far_away.scale + far_away.mean
    expected = compute(onnx_model.export(request, far_away, weights, at_once=128), windows)
    request.data.samples.SetInParent()
    file = onnx_model.export(request, far_away, weights, at_once=128)
    assert onnxruntime.InferenceSession(file).get_inputs()[0].shape == ["n", 3, 8]
    turned = np.ascontiguousarray(windows.transpose(0, 2, 1))
    assert np.array_equal(compute(file, turned), expected)


def test_it_says_what_goes_in_and_comes_out(
    make_prepared: MakePrepared, make_request: MakeRequest
) -> None:
    request = make_request()
    prepared = replace(make_prepared(), class_names=["hält", 'ka"uft', "1"])
    file = onnx_model.export(request, prepared, weights_of(request, prepared), at_once=128)
    session = onnxruntime.InferenceSession(file)
    facts = session.get_modelmeta().custom_metadata_map
    assert {name: json.loads(text) for name, text in facts.items()} == {
        "class_names": ["hält", 'ka"uft', "1"],
        "feature_columns": ["f0", "f1", "f2"],
        "sequence_length": 8,
        "history": 0,
    }
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("windows", "tensor(double)", ["n", 8, 3])
    assert (found.name, found.type, found.shape) == ("probabilities", "tensor(float)", ["n", 3])


def test_nothing_in_it_says_where_it_was_made(
    make_prepared: MakePrepared, make_request: MakeRequest
) -> None:
    request, prepared = make_request(), make_prepared()
    file = onnx_model.export(request, prepared, weights_of(request, prepared), at_once=128)
    for trace in (torch.__file__, onnx_model.__file__, str(Path.cwd()), "site-packages", ".py"):
        assert trace.encode() not in file


# ------------------------------------------------------------------------ where there is none


@pytest.fixture
def unlike(make_prepared: MakePrepared) -> Prepared:
    """Raw values of so many digits that no float64 holds them: scaling does not lead back."""
    return replace(make_prepared(), mean=np.full(3, 1e18), scale=np.ones(3))


def test_a_file_that_computes_something_else_is_refused(
    unlike: Prepared, make_request: MakeRequest
) -> None:
    request = make_request()
    with pytest.raises(onnx_model.NotExported, match=r"differ .* by 0\.\d+; allowed: 0\.0001"):
        onnx_model.export(request, unlike, weights_of(request, unlike), at_once=128)


def test_a_network_that_gives_no_numbers_is_refused(
    make_prepared: MakePrepared, make_request: MakeRequest
) -> None:
    request, prepared = make_request(), make_prepared()
    weights = {
        name: torch.full_like(weight, torch.nan)
        for name, weight in weights_of(request, prepared).items()
    }
    with pytest.raises(onnx_model.NotExported, match="by nan"):
        onnx_model.export(request, prepared, weights, at_once=128)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_its_packages_there_is_none(
    package: str,
    make_prepared: MakePrepared,
    make_request: MakeRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request, prepared = make_request(), make_prepared()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(onnx_model.NotExported, match="the export failed"):
        onnx_model.export(request, prepared, weights_of(request, prepared), at_once=128)


def test_a_model_without_the_file_is_whole_otherwise(
    unlike: Prepared, make_request: MakeRequest, run: Run, tmp_path: Path
) -> None:
    *_, warned, succeeded = run(make_request(), unlike)
    assert warned.warning.reason == training_pb2.WARNING_REASON_ONNX_NOT_WRITTEN
    assert "no model.onnx: its probabilities differ" in warned.warning.message
    assert succeeded.succeeded.best_epoch
    folder = tmp_path / "job/bundle"
    assert {path.name for path in folder.iterdir()} == {
        "MODEL_CARD.md",
        "metrics.json",
        "model.safetensors",
        "preprocessing.json",
        "request.json",
    }
    card = (folder / "MODEL_CARD.md").read_text()
    assert "There is no `model.onnx`" in card
    assert "onnxruntime" not in card


# ------------------------------------------------------------------------ the lines on the card


def test_the_lines_on_the_card_predict_without_torch(
    make_prepared: MakePrepared, make_request: MakeRequest, run: Run, tmp_path: Path
) -> None:
    prepared = make_prepared()
    *_, end = run(make_request(trainer__epochs="10"), prepared)
    folder = tmp_path / "job/bundle"
    card = (folder / "MODEL_CARD.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("PATH/OF/THIS/FOLDER", str(folder))
    assert len([line for line in code.splitlines() if line and line[0] != "#"]) == 6
    raw = scaled_windows(prepared) * prepared.scale + prepared.mean
    np.save(tmp_path / "windows.npy", raw)
    program = (
        "import sys, numpy\n"
        "for name in ('torch', 'trainwire', 'trainwire_client', 'onnx'): sys.modules[name] = None\n"
        f"windows = numpy.load({str(tmp_path / 'windows.npy')!r})\n{code}\n"
        "print(json.dumps(predicted))"
    )
    done: Any = subprocess.run(
        [sys.executable, "-I", "-c", program], check=True, capture_output=True, text=True
    )
    matrix = np.zeros((3, 3), dtype=int)
    found = np.array([prepared.class_names.index(name) for name in json.loads(done.stdout)])
    np.add.at(matrix, (prepared.test.labels, found), 1)
    assert matrix.ravel().tolist() == list(end.succeeded.test.confusion_matrix)
    assert len(np.unique(found)) > 1
