"""The training run: its events, its randomness, its ways to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch

from trainwire import contract
from trainwire.v1 import dataset_pb2, training_pb2
from trainwire_server.data import profile
from trainwire_server.data.checkpoints import BEST
from trainwire_server.data.prepare import Prepared
from trainwire_server.errors import JobFailure
from trainwire_server.training import fit
from trainwire_server.training.balancing import class_weights
from trainwire_server.training.devices import memory_errors_explained
from trainwire_server.training.seeds import reseed
from trainwire_server.training.setup import set_up

MakePrepared = Callable[..., Prepared]
MakeRequest = Callable[..., training_pb2.TrainingRequest]
Events = list[training_pb2.TrainingEvent]
Run = Callable[..., Events]


def kinds(events: Events) -> list[str]:
    return [str(event.WhichOneof("event")) for event in events]


def epochs_of(events: Events) -> list[training_pb2.EpochCompleted]:
    return [event.epoch for event in events if event.HasField("epoch")]


def without_times(events: Events) -> list[bytes]:
    """Events as bytes, without what differs between equal runs."""
    kept = []
    for event in events:
        copy = training_pb2.TrainingEvent()
        copy.CopyFrom(event)
        if copy.HasField("epoch"):
            for name in ("seconds", "windows_per_second", "peak_memory_bytes"):
                copy.epoch.ClearField(name)
        kept.append(copy.SerializeToString(deterministic=True))
    return kept


def collect(events: Iterator[training_pb2.TrainingEvent], seen: Events) -> None:
    """Keeps what came before an exception."""
    for event in events:
        seen.append(event)


def weights_in(folder: Path) -> bytes:
    return (folder / "bundle" / "model.safetensors").read_bytes()


# ------------------------------------------------------------------------ the events


def test_a_run_tells_what_it_uses_and_what_came_out(
    run: Run, make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    prepared, request = make_prepared(), make_request()
    events = run(request)
    assert kinds(events) == ["started", "epoch", "epoch", "epoch", "succeeded"]
    started = events[0].started
    assert (started.device, started.threads, started.deterministic) == ("cpu", 1, True)
    assert started.precision == training_pb2.PRECISION_FP32
    assert list(started.class_names) == prepared.class_names
    assert list(started.feature_columns) == prepared.feature_columns
    assert list(started.class_counts) == np.bincount(prepared.train.labels).tolist()
    assert (started.train.rows, started.train.windows) == (257, 250)
    assert (started.validation.windows, started.test.windows) == (60, 60)
    assert (started.purged_windows, started.unlabelled_windows) == (23, 0)
    assert started.parameter_count > 100
    assert started.request == request
    assert started.torch_version == torch.__version__
    for number, epoch in enumerate(epochs_of(events), start=1):
        assert (epoch.epoch, epoch.epochs) == (number, 3)
        assert epoch.seconds > 0 < epoch.windows_per_second
        assert epoch.peak_memory_bytes > 10_000_000
    succeeded = events[-1].succeeded
    assert (succeeded.epochs_run, succeeded.stopped_early) == (3, False)
    assert sum(succeeded.test.confusion_matrix) == 60
    assert not succeeded.model


def test_it_learns_what_can_be_learned(run: Run, make_request: MakeRequest) -> None:
    events = run(make_request(trainer__epochs="40", model__dropout="0"))
    assert events[-1].succeeded.test.macro_f1 > 0.8


def test_test_metrics_come_with_intervals(run: Run, make_request: MakeRequest) -> None:
    done = run(make_request(trainer__epochs="1"))[-1].succeeded
    known = {each.metric: each for each in done.test_intervals}
    assert sorted(known) == [
        "accuracy", "balanced_accuracy", "macro_f1", "matthews_correlation", "roc_auc"
    ]  # fmt: skip
    assert known["accuracy"].lower <= done.test.accuracy <= known["accuracy"].upper
    assert 0 < done.test.roc_auc < 1
    assert 0 < done.validation.roc_auc < 1


def test_warnings_of_the_data_come_first(
    run: Run, make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    warning = training_pb2.JobWarning(
        reason=training_pb2.WARNING_REASON_CONSTANT_FEATURE, message="f0 is constant"
    )
    events = run(make_request(), replace(make_prepared(), warnings=[warning]))
    assert kinds(events)[:2] == ["warning", "started"]
    assert events[0].warning == warning


def test_heartbeats_say_how_far_a_long_epoch_is(
    run: Run, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "HEARTBEAT_SECONDS", 0.0)
    events = run(make_request(trainer__epochs="1"))
    beats = [event.progress for event in events if event.HasField("progress")]
    steps = beats[0].steps
    assert [beat.step for beat in beats] == list(range(1, steps + 1))
    assert all((beat.epoch, beat.epochs) == (1, 1) for beat in beats)
    assert beats[-1].train_loss == epochs_of(events)[0].train.loss
    assert all(beat.windows_per_second > 0 for beat in beats)


def test_collapse_is_told_when_it_begins(run: Run, make_request: MakeRequest) -> None:
    # A learning rate so small that the untrained network's one favourite stays.
    events = run(make_request(trainer__learning_rate="1e-9", trainer__seed="1"))
    shares = [max(m.predicted_share for m in e.validation.classes) for e in epochs_of(events)]
    assert min(shares) > 0.9
    assert kinds(events).count("warning") == 1
    assert kinds(events)[:3] == ["started", "warning", "epoch"]
    warning = next(event.warning for event in events if event.HasField("warning"))
    assert warning.reason == training_pb2.WARNING_REASON_PREDICTION_COLLAPSE


# ------------------------------------------------------------------------ reproducibility


def test_the_same_request_gives_the_same_bits_and_another_seed_does_not(
    run: Run, make_request: MakeRequest, tmp_path: Path
) -> None:
    one = run(make_request(), folder="one")
    two = run(make_request(), folder="two")
    other = run(make_request(trainer__seed="43"), folder="other")
    assert without_times(one) == without_times(two)
    assert without_times(one) != without_times(other)
    assert weights_in(tmp_path / "one") == weights_in(tmp_path / "two")
    assert weights_in(tmp_path / "one") != weights_in(tmp_path / "other")


def test_an_epochs_randomness_does_not_depend_on_what_came_before() -> None:
    def draw(epoch: int) -> tuple[list[int], list[float]]:
        rng = reseed(42, epoch)
        return rng.permutation(20).tolist(), torch.rand(5).tolist()

    third = draw(3)
    draw(1)
    torch.rand(17)
    assert draw(3) == third
    assert draw(4) != third


def test_restored_best_weights_reproduce_the_best_epochs_metrics(
    run: Run, make_request: MakeRequest, make_prepared: MakePrepared, tmp_path: Path
) -> None:
    # A rate so high that the loss goes up and down, so that the best epoch is not the last.
    request = make_request(
        trainer__epochs="8", trainer__learning_rate="0.2", trainer__batch_size="32"
    )
    events = run(request)
    succeeded = events[-1].succeeded
    assert succeeded.best_epoch < 8
    best = epochs_of(events)[succeeded.best_epoch - 1]
    assert best.is_best
    assert best.validation == succeeded.validation
    assert best.validation.loss == min(e.validation.loss for e in epochs_of(events))

    setup = set_up(request, make_prepared(), 1)
    weights = safetensors.torch.load_file(tmp_path / "job/bundle/model.safetensors")
    setup.model.load_state_dict(weights)
    for split, expected in ((setup.validation, best.validation), (setup.test, succeeded.test)):
        tally = fit.evaluate(setup, split, request.trainer.batch_size, lambda: None)
        assert tally.loss() == expected.loss
        assert tally.matrix().ravel().tolist() == list(expected.confusion_matrix)
    saved = safetensors.torch.load_file(tmp_path / "job" / BEST)
    assert all(torch.equal(saved[name], weights[name]) for name in weights)


# ------------------------------------------------------------------------ stopping


@pytest.mark.parametrize("metric", ["VAL_LOSS", "VAL_MACRO_F1", "VAL_BALANCED_ACCURACY"])
def test_the_metric_picks_the_best_epoch_and_patience_ends_the_run(
    metric: str, run: Run, make_request: MakeRequest
) -> None:
    request = make_request(
        trainer__epochs="30",
        trainer__learning_rate="0.1",
        trainer__early_stopping_patience="3",
        trainer__early_stopping_metric=metric,
    )
    events = run(request)
    epochs, succeeded = epochs_of(events), events[-1].succeeded
    scores = {
        "VAL_LOSS": [-e.validation.loss for e in epochs],
        "VAL_MACRO_F1": [e.validation.macro_f1 for e in epochs],
        "VAL_BALANCED_ACCURACY": [e.validation.balanced_accuracy for e in epochs],
    }[metric]
    assert [e.is_best for e in epochs] == [
        score > max(scores[:i], default=-1e9) for i, score in enumerate(scores)
    ]
    assert succeeded.best_epoch == int(np.argmax(scores)) + 1
    assert succeeded.stopped_early
    assert succeeded.epochs_run == len(epochs) == succeeded.best_epoch + 3


def test_the_last_epoch_is_taken_where_no_metric_is_to_pick(
    run: Run, make_request: MakeRequest
) -> None:
    # What makes the test above stop early.
    request = make_request(
        trainer__epochs="12",
        trainer__learning_rate="0.1",
        trainer__early_stopping_patience="1",
        trainer__early_stopping_metric="LAST_EPOCH",
    )
    events = run(request)
    epochs, succeeded = epochs_of(events), events[-1].succeeded
    losses = [epoch.validation.loss for epoch in epochs]
    assert int(np.argmin(losses)) + 1 < len(epochs)
    assert succeeded.best_epoch == succeeded.epochs_run == 12
    assert not succeeded.stopped_early
    assert succeeded.validation == epochs[-1].validation


def test_patience_zero_never_stops(run: Run, make_request: MakeRequest) -> None:
    rough = {"trainer__epochs": "12", "trainer__learning_rate": "0.3"}
    impatient = run(make_request(trainer__early_stopping_patience="1", **rough))
    assert impatient[-1].succeeded.stopped_early
    patient = run(make_request(trainer__early_stopping_patience="0", **rough))
    assert not patient[-1].succeeded.stopped_early
    assert patient[-1].succeeded.epochs_run == 12 > impatient[-1].succeeded.epochs_run


@pytest.mark.parametrize("asked", [0, 1, 10, 17, 18, 27])
def test_cancel_is_seen_at_any_batch_and_keeps_the_best_weights(
    asked: int, make_request: MakeRequest, make_prepared: MakePrepared, tmp_path: Path
) -> None:
    answers = iter([False] * asked)
    request = make_request(trainer__batch_size="32", balancing__use_oversampling="false")
    seen: Events = []
    events = fit.train(request, make_prepared(), tmp_path, 1, lambda: next(answers, True))
    with pytest.raises(fit.Cancelled) as caught:
        collect(events, seen)
    # An epoch asks 8 times for its batches of 32 and once for the validation batch of 60.
    assert caught.value.epochs_run == len(epochs_of(seen)) == asked // 9
    assert (caught.value.best_epoch > 0) == (asked >= 9)
    assert (tmp_path / BEST).exists() == (asked >= 9)
    assert not (tmp_path / "bundle").exists()


# ------------------------------------------------------------------------ balancing, augmentation


def test_oversampling_changes_what_is_trained_on_and_nothing_else(
    run: Run, make_request: MakeRequest, make_prepared: MakePrepared, tmp_path: Path
) -> None:
    same = {"balancing__use_class_weights": "false"}
    plain = run(make_request(balancing__use_oversampling="false", **same), folder="plain")
    over = run(make_request(balancing__oversample_ratio="0.9", **same), folder="over")
    counts = np.bincount(make_prepared().train.labels)
    assert list(plain[0].started.balanced_class_counts) == counts.tolist()
    expected = [max(n, round(0.9 * counts.max())) for n in counts.tolist()]
    assert list(over[0].started.balanced_class_counts) == expected
    assert list(over[0].started.class_counts) == counts.tolist()
    for events, train_counts in ((plain, counts.tolist()), (over, expected)):
        for epoch in epochs_of(events):
            assert [m.support for m in epoch.train.classes] == train_counts
            validation = np.bincount(make_prepared().validation.labels).tolist()
            assert [m.support for m in epoch.validation.classes] == validation
        test = np.bincount(make_prepared().test.labels).tolist()
        assert [m.support for m in events[-1].succeeded.test.classes] == test
    assert weights_in(tmp_path / "plain") != weights_in(tmp_path / "over")


def test_class_weights_follow_from_the_counts_after_resampling(
    make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    setup = set_up(make_request(balancing__oversample_ratio="1"), make_prepared(), 1)
    assert len(set(setup.balance.balanced_counts.tolist())) == 1
    assert setup.balance.weights.tolist() == pytest.approx([1, 1, 1])
    assert len(set(setup.balance.counts.tolist())) == 3

    setup = set_up(make_request(), make_prepared(), 1)
    method = training_pb2.CLASS_WEIGHT_METHOD_BALANCED
    expected = class_weights(setup.balance.balanced_counts, method)
    assert setup.balance.weights.tolist() == expected.tolist()
    assert expected.tolist() != class_weights(setup.balance.counts, method).tolist()
    assert setup.weights.tolist() == pytest.approx(expected.tolist())


def test_without_class_weights_all_are_one(
    make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    setup = set_up(make_request(balancing__use_class_weights="false"), make_prepared(), 1)
    assert setup.balance.weights.tolist() == [1, 1, 1]


def test_noise_reaches_training_windows_alone(
    run: Run, make_request: MakeRequest, make_prepared: MakePrepared, tmp_path: Path
) -> None:
    # At a rate this low the weights hardly move: noise shows in the training loss of the first
    # epoch, and would show in the validation loss if it were added there.
    still = {"trainer__learning_rate": "1e-12", "trainer__epochs": "1", "model__dropout": "0"}
    off = run(make_request(trainer__use_augmentation="false", **still), folder="off")
    zero = run(make_request(trainer__gaussian_noise_std="0", **still), folder="zero")
    on = run(make_request(trainer__gaussian_noise_std="1", **still), folder="on")
    first = [epochs_of(events)[0] for events in (off, zero, on)]
    losses = [(epoch.train.loss, epoch.validation.loss) for epoch in first]
    assert losses[0] == losses[1]
    assert abs(losses[2][0] - losses[0][0]) > 1e-4
    assert abs(losses[2][1] - losses[0][1]) < 1e-6


def test_evaluation_neither_drops_out_nor_keeps_gradients(
    make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    setup = set_up(make_request(), make_prepared(), 1)
    first = fit.evaluate(setup, setup.validation, 32, lambda: None)
    assert fit.evaluate(setup, setup.validation, 32, lambda: None).loss() == first.loss()
    assert all(parameter.grad is None for parameter in setup.model.parameters())


CHANGES = [
    "trainer__weight_decay=0.5",
    "trainer__label_smoothing=0",
    "trainer__gradient_clip_norm=0.01",
    "trainer__batch_size=31",
    "trainer__precision=BF16",
    "trainer__scheduler_type=ONE_CYCLE",
    "trainer__learning_rate=0.02",
    "model__dropout=0.2",
    "balancing__use_focal_loss=false",
    "balancing__focal_gamma=1",
    "balancing__use_class_weights=false",
    "balancing__class_weight_method=SQRT",
]


@pytest.fixture(scope="module")
def unchanged(
    train_in: Run, make_request: MakeRequest, tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """The weights of the request as it is."""
    folder = tmp_path_factory.mktemp("unchanged")
    train_in(folder, make_request())
    return weights_in(folder)


@pytest.mark.parametrize("change", CHANGES)
def test_parameters_change_the_weights(
    change: str, run: Run, make_request: MakeRequest, unchanged: bytes, tmp_path: Path
) -> None:
    path, _, value = change.partition("=")
    run(make_request(**{path: value}))
    assert weights_in(tmp_path / "job") != unchanged


def test_the_same_request_gives_the_weights_that_changes_are_held_against(
    run: Run, make_request: MakeRequest, unchanged: bytes, tmp_path: Path
) -> None:
    run(make_request())
    assert weights_in(tmp_path / "job") == unchanged


def test_bf16_is_reported_and_trains(run: Run, make_request: MakeRequest) -> None:
    events = run(make_request(trainer__precision="BF16"))
    assert events[0].started.precision == training_pb2.PRECISION_BF16
    assert events[-1].succeeded.epochs_run == 3


# ------------------------------------------------------------------------ failures


def test_a_loss_that_is_not_finite_ends_the_run_and_says_what_to_try(
    run: Run, make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    request = make_request(trainer__gradient_clip_norm="0", trainer__learning_rate="0.99")
    with pytest.raises(JobFailure) as caught:
        run(request, make_prepared(blow_up=3e37))
    assert caught.value.reason == training_pb2.FAILURE_REASON_NON_FINITE_LOSS
    assert "epoch 1" in caught.value.message
    assert "trainer.learning_rate (now 0.99)" in caught.value.message
    assert caught.value.fields[0].field == "trainer.learning_rate"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_on_a_machine_without_one_is_a_clear_failure(
    run: Run, make_request: MakeRequest
) -> None:
    with pytest.raises(JobFailure) as caught:
        run(make_request(resources__device="CUDA"))
    assert caught.value.reason == training_pb2.FAILURE_REASON_DEVICE_UNAVAILABLE
    assert caught.value.fields[0].field == "resources.device"


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**46), lambda: np.ones(2**46)])
def test_memory_that_runs_out_is_a_clear_failure(allocate: Callable[[], object]) -> None:
    with pytest.raises(JobFailure) as caught, memory_errors_explained():
        allocate()
    assert caught.value.reason == training_pb2.FAILURE_REASON_OUT_OF_MEMORY
    assert "try a smaller network, shorter windows or series" in caught.value.message


def test_other_errors_are_not_taken_for_memory_errors() -> None:
    with pytest.raises(RuntimeError, match="size"), memory_errors_explained():
        torch.zeros(2) + torch.zeros(3)


# ------------------------------------------------------------------------ from a table


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    f0, f1 = rng.standard_normal((2, 400))
    label = np.where(f0 > 0.5, "up", "down")
    data = pa.table({"f0": f0, "f1": 1000 + f1, "label": label})
    with pa.ipc.new_file(tmp_path / "upload", data.schema) as writer:
        writer.write_table(data)
    arrow = dataset_pb2.DATASET_FORMAT_ARROW
    profile.ingest(tmp_path / "upload", tmp_path / "table.arrow", arrow)
    return tmp_path / "table.arrow"


def test_fit_goes_from_a_stored_table_to_a_bundle(
    table: Path, make_request: MakeRequest, tmp_path: Path
) -> None:
    (tmp_path / "job").mkdir()
    # Not effective: fit fills in the defaults itself.
    request = training_pb2.TrainingRequest()
    for path in ("dataset", "data.column.name", "model.hybrid_cnn_lstm.conv_channels"):
        contract.assign(request, path, "label" if path.endswith("name") else "4")
    request.dataset = "datasets/sha256-0"
    request.trainer.epochs = 1
    request.data.windows.sequence_length = 8
    events = list(fit.fit(request, table, tmp_path / "job", 1, lambda: False))
    assert kinds(events)[0] == "started"
    assert kinds(events)[-1] == "succeeded"
    started = events[0].started
    assert list(started.feature_columns) == ["f0", "f1"]
    assert list(started.class_names) == ["down", "up"]
    assert started.request == contract.resolve(request)
    assert (tmp_path / "job/bundle/MODEL_CARD.md").exists()
