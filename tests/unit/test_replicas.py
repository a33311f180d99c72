"""Parts of a batch in several threads: the same step as a whole, whoever is faster."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared
from trainwire_server.training.fit import evaluate, train
from trainwire_server.training.replicas import Replica
from trainwire_server.training.setup import Setup, set_up
from trainwire_server.training.steps import set_gradients

MakePrepared = Callable[..., Prepared]
MakeRequest = Callable[..., training_pb2.TrainingRequest]

# What parts draw, each for itself.
EXACT = {"model__dropout": "0", "trainer__use_augmentation": "false"}


@pytest.fixture
def split(make_request: MakeRequest, make_prepared: MakePrepared) -> Setup:
    """Two replicas, for batches of 32."""
    return set_up(make_request(**EXACT), make_prepared(), 2)


def gradients(setup: Setup, batch: int = 32, micro_batch: int = 32) -> list[Tensor]:
    taken = setup.train.take(slice(batch))
    set_gradients(setup, 0.1, taken.starts, taken.labels, micro_batch)
    return [p.grad.clone() for p in setup.model.parameters() if p.grad is not None]


@pytest.mark.parametrize(("batch", "micro_batch"), [(32, 32), (31, 32), (2, 32), (1, 32), (32, 5)])
def test_gradients_are_those_of_the_whole_batch(
    batch: int,
    micro_batch: int,
    split: Setup,
    make_request: MakeRequest,
    make_prepared: MakePrepared,
) -> None:
    expected = gradients(set_up(make_request(**EXACT), make_prepared(), 1), batch)
    found = gradients(split, batch, micro_batch)
    assert len(found) == len(expected) == len(list(split.model.parameters()))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_parts_are_computed_at_the_same_time_and_come_in_order(split: Setup) -> None:
    both = threading.Barrier(2, timeout=30)

    def meet(replica: Replica, rows: Tensor) -> tuple[int, list[int]]:
        both.wait()
        return id(replica), rows.tolist()

    (one, first), (other, second) = split.replicas.map(meet, torch.arange(5))
    assert one != other
    assert (first, second) == ([0, 1, 2], [3, 4])


def test_an_error_comes_when_all_parts_have_ended(split: Setup) -> None:
    ended = []
    failed = threading.Event()

    def fail_first(_: Replica, rows: Tensor) -> None:
        if int(rows[0]) == 0:
            failed.set()
            raise MemoryError
        assert failed.wait(30)
        ended.append(rows.tolist())

    with pytest.raises(MemoryError):
        split.replicas.map(fail_first, torch.arange(4))
    assert ended == [[2, 3]]


@pytest.mark.parametrize("noise", [
    {"model__dropout": "0.4"},
    {"model__dropout": "0", "model__hybrid_cnn_lstm__channel_noise": "0.3"},
])  # fmt: skip
def test_replicas_share_weights_and_draw_for_themselves(
    noise: dict[str, str], make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    setup = set_up(make_request(**noise), make_prepared(), 2)
    replicas = setup.replicas.map(lambda replica, _: replica, torch.arange(2))
    for replica in replicas:
        pairs = zip(replica.model.parameters(), setup.model.parameters(), strict=True)
        assert all(own is shared for own, shared in pairs)
        assert replica.model.training
    assert not setup.model.training
    windows = setup.windows[setup.train.starts[:8]]
    logits = []
    for seeds in ((1, 2), (2, 1)):
        for generator, seed in zip(setup.replicas.generators, seeds, strict=True):
            generator.manual_seed(seed)
        logits.append([replica.model(windows) for replica in replicas])
    (one, other), (other_again, one_again) = logits
    assert not torch.equal(one, other)
    assert torch.equal(one, one_again)
    assert torch.equal(other, other_again)


@pytest.mark.parametrize(("threads", "batch", "parts", "inner"), [
    (1, 64, 1, 1), (2, 32, 2, 1), (2, 31, 1, 2), (4, 256, 4, 1), (8, 32, 2, 4), (3, 16, 1, 3),
])  # fmt: skip
def test_threads_go_to_parts_and_what_is_left_into_operations(
    threads: int,
    batch: int,
    parts: int,
    inner: int,
    make_request: MakeRequest,
    make_prepared: MakePrepared,
) -> None:
    setup = set_up(make_request(trainer__batch_size=str(batch)), make_prepared(), threads)
    assert (len(setup.replicas.generators), setup.replicas.inner_threads) == (parts, inner)
    counts = setup.replicas.map(lambda _, rows: torch.get_num_threads(), torch.arange(parts))
    assert {torch.get_num_threads(), *counts} == {inner}


def test_a_run_in_two_threads_gives_the_same_bits_every_time(
    make_request: MakeRequest, make_prepared: MakePrepared, tmp_path: Path
) -> None:
    def weights(name: str, threads: int) -> bytes:
        (tmp_path / name).mkdir()
        events = train(make_request(), make_prepared(), tmp_path / name, threads, lambda: False)
        assert list(events)[-1].HasField("succeeded")
        return (tmp_path / name / "bundle" / "model.safetensors").read_bytes()

    first = weights("one", 2)
    assert [weights(name, 2) == first for name in ("two", "three")] == [True, True]
    assert weights("alone", 1) != first


def test_evaluation_in_parts_counts_every_window_once(
    split: Setup, make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    alone = set_up(make_request(**EXACT), make_prepared(), 1)
    one, other = (evaluate(setup, setup.validation, 32, lambda: None) for setup in (alone, split))
    assert other.loss() == pytest.approx(one.loss(), rel=1e-6)
    assert other.matrix().tolist() == one.matrix().tolist()
