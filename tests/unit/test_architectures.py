"""What holds for every architecture of the contract, whichever it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainwire import contract
from trainwire.architectures.build import build
from trainwire.architectures.fitted import FittedNetwork
from trainwire.v1 import training_pb2
from trainwire_client.bundle import load_bundle
from trainwire_server.data.prepare import Prepared
from trainwire_server.training import bundle, checkpoint, fit
from trainwire_server.training.setup import set_up

MakePrepared = Callable[..., Prepared]
MakeRequest = Callable[..., training_pb2.TrainingRequest]
Run = Callable[..., list[training_pb2.TrainingEvent]]

SMALL = {
    "hybrid_cnn_lstm": {"conv_blocks": "1", "conv_channels": "4", "lstm_hidden_size": "4"},
    "linear": {"pool_size": "2"},
    "inception_time": {"depth": "3", "filters": "2", "kernel_size": "8", "bottleneck_size": "2"},
    "mini_rocket": {"features_per_kernel": "3"},
}


@pytest.fixture(params=SMALL)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def sizes_of(architecture: str) -> dict[str, str]:
    return {f"model.{architecture}.{name}": text for name, text in SMALL[architecture].items()}


def effective_model(architecture: str) -> training_pb2.ModelParams:
    request = training_pb2.TrainingRequest()
    for path, text in {**sizes_of(architecture), "model.dropout": "0.5"}.items():
        contract.assign(request, path, text)
    return contract.resolve(request.model)


def fresh(architecture: str, features: int = 3, classes: int = 4, time: int = 15) -> nn.Module:
    return build(effective_model(architecture), features, classes, time)


def ready(architecture: str, windows: Tensor) -> nn.Module:
    """In evaluation, fitted, with weights that are not all 0."""
    torch.manual_seed(0)
    network = fresh(architecture, windows.shape[1], 4, windows.shape[2]).eval()
    if isinstance(network, FittedNetwork):
        rows = torch.arange(len(windows))
        network.fit_to(windows, rows, rows % 4, torch.ones(4, dtype=torch.float64))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def test_every_architecture_of_the_contract_is_here() -> None:
    members = training_pb2.ModelParams.DESCRIPTOR.oneofs_by_name["architecture"].fields
    assert list(SMALL) == [member.name for member in members]


def test_the_generator_decides_what_a_network_begins_with(architecture: str) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(fresh(architecture).state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize(("features", "time"), [(1, 2), (1, 30), (6, 9), (11, 17)])
def test_any_window_gives_a_logit_for_each_class(
    architecture: str, features: int, time: int, classes: int
) -> None:
    network = fresh(architecture, features, classes, time)
    assert network(torch.randn(3, features, time)).shape == (3, classes)


@pytest.mark.parametrize("path", ["hybrid_cnn_lstm.pool_size", "linear.pool_size"])
def test_more_steps_than_a_window_has_are_averaged_as_all_it_has(path: str) -> None:
    windows, logits = torch.randn(1, 2, 7), []
    for size in (7, 8, 2**32 - 1):
        model = training_pb2.ModelParams()
        contract.assign(model, path, str(size))
        torch.manual_seed(0)
        network = build(contract.resolve(model), 2, 3, 7).eval()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
        logits.append(network(windows))
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_a_sample_does_not_depend_on_its_batch(architecture: str) -> None:
    windows = torch.randn(6, 3, 15)
    network = ready(architecture, windows)
    alone = torch.cat([network(window[None]) for window in windows])
    torch.testing.assert_close(network(windows), alone, rtol=1e-5, atol=1e-5)


def test_a_state_dict_is_all_that_a_fresh_network_needs(architecture: str) -> None:
    windows = torch.randn(6, 3, 15)
    network, other = ready(architecture, windows), fresh(architecture).eval()
    assert not torch.equal(network(windows), other(windows))
    other.load_state_dict(checkpoint.copy_weights(network))
    assert torch.equal(network(windows), other(windows))


def test_the_client_predicts_what_the_trainer_measured(
    architecture: str,
    run: Run,
    make_request: MakeRequest,
    make_prepared: MakePrepared,
    tmp_path: Path,
) -> None:
    request, prepared = make_request(**sizes_of(architecture)), make_prepared()
    events = run(request, prepared)
    succeeded, model = events[-1].succeeded, load_bundle(tmp_path / "job/bundle")
    rows = prepared.test.starts[:, None] + np.arange(prepared.sequence_length)
    windows = prepared.features[rows] * prepared.scale + prepared.mean
    probabilities = model.predict_proba(windows)
    matrix = np.zeros((3, 3), dtype=int)
    np.add.at(matrix, (prepared.test.labels, probabilities.argmax(axis=1)), 1)
    assert matrix.ravel().tolist() == list(succeeded.test.confusion_matrix)
    own = probabilities[np.arange(len(windows)), prepared.test.labels]
    assert -np.log(own).mean() == pytest.approx(succeeded.test.loss, rel=1e-5)
    started = next(event.started for event in events if event.HasField("started"))
    described = bundle.describe(tmp_path / "job/bundle")
    assert 0 < described.parameter_count == started.parameter_count
    assert (tmp_path / "job/bundle" / bundle.ONNX).exists()


def test_a_network_in_a_run_is_that_of_its_bundle(
    architecture: str,
    run: Run,
    make_request: MakeRequest,
    make_prepared: MakePrepared,
    tmp_path: Path,
) -> None:
    request, prepared = make_request(**sizes_of(architecture)), make_prepared()
    run(request, prepared)
    loaded = load_bundle(tmp_path / "job/bundle").module
    setup = set_up(request, prepared, 1)
    setup.model.load_state_dict(loaded.state_dict())
    windows = setup.windows[setup.test.starts].contiguous()
    assert torch.equal(setup.model(windows), loaded(windows))


def test_a_resumed_run_of_a_fitted_network_is_the_undisturbed_run(
    run: Run,
    make_request: MakeRequest,
    make_prepared: MakePrepared,
    tmp_path: Path,
) -> None:
    request = make_request(**sizes_of("mini_rocket"), trainer__use_augmentation="false")
    run(request, folder="undisturbed")
    (tmp_path / "job").mkdir()
    begun = fit.train(request, make_prepared(), tmp_path / "job", 1, lambda: False)
    next(event for event in begun if event.epoch.epoch == 3)
    begun.close()
    resumed = run(request, is_started=True)
    assert resumed[0].resumed.epoch == 2
    weights = [
        (tmp_path / name / "bundle/model.safetensors").read_bytes()
        for name in ("job", "undisturbed")
    ]
    assert weights[0] == weights[1]
