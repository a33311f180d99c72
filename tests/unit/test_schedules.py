"""Every schedule's learning rates, against formulas and torch's own schedulers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.optim import lr_scheduler

from trainwire import contract
from trainwire.v1 import training_pb2
from trainwire_server.training.schedules import Schedule

RATE, EPOCHS, STEPS = 0.1, 12, 3


def make_optimizer() -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=RATE)


def make_trainer(kind: str, t_0: int = 10, t_mult: int = 2) -> training_pb2.TrainerParams:
    trainer = training_pb2.TrainerParams(
        learning_rate=RATE, epochs=EPOCHS, scheduler_t_0=t_0, scheduler_t_mult=t_mult
    )
    trainer.scheduler_type = training_pb2.SchedulerType.Value(f"SCHEDULER_TYPE_{kind}")
    return contract.resolve(trainer)


def rates(trainer: training_pb2.TrainerParams, losses: list[float] | None = None) -> list[float]:
    """Rate of every step of every epoch."""
    optimizer = make_optimizer()
    return go_on(Schedule(trainer, optimizer, STEPS), optimizer, range(EPOCHS), losses)


def go_on(
    schedule: Schedule,
    optimizer: torch.optim.Optimizer,
    epochs: range,
    losses: list[float] | None = None,
) -> list[float]:
    """Rate of every step of these epochs."""
    found = []
    for epoch in epochs:
        for _ in range(STEPS):
            found.append(schedule.learning_rate)
            optimizer.step()
            schedule.after_batch()
        schedule.after_epoch(losses[epoch] if losses else 1.0)
    return found


def per_epoch(values: list[float]) -> list[float]:
    return [value for value in values for _ in range(STEPS)]


def test_constant() -> None:
    assert rates(make_trainer("CONSTANT")) == [RATE] * EPOCHS * STEPS


def test_cosine_is_half_a_wave_over_all_epochs() -> None:
    expected = [RATE * (1 + math.cos(math.pi * e / EPOCHS)) / 2 for e in range(EPOCHS)]
    assert rates(make_trainer("COSINE")) == pytest.approx(per_epoch(expected))


def test_warm_restarts_follow_the_cycle_lengths() -> None:
    cycles = [(2, e) for e in range(2)] + [(6, e) for e in range(6)] + [(18, e) for e in range(4)]
    expected = [RATE * (1 + math.cos(math.pi * e / length)) / 2 for length, e in cycles]
    trainer = make_trainer("COSINE_WARM_RESTARTS", t_0=2, t_mult=3)
    assert rates(trainer) == pytest.approx(per_epoch(expected))


def test_plateau_cuts_to_a_tenth_after_ten_epochs_without_a_lower_loss() -> None:
    falling = [1.0 - 1e-9 * e for e in range(EPOCHS)]
    trainer = make_trainer("REDUCE_ON_PLATEAU")
    assert rates(trainer, falling) == [RATE] * EPOCHS * STEPS
    # The first loss counts as an improvement; ten epochs that do not beat it follow.
    stuck = rates(trainer, [1.0] * EPOCHS)
    assert stuck == pytest.approx(per_epoch([RATE] * 11 + [RATE / 10]))


def test_one_cycle_is_torchs_stepped_after_every_batch() -> None:
    optimizer = make_optimizer()
    reference = lr_scheduler.OneCycleLR(
        optimizer, max_lr=RATE, total_steps=EPOCHS * STEPS, cycle_momentum=False
    )
    expected = []
    for _ in range(EPOCHS * STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    found = rates(make_trainer("ONE_CYCLE"))
    assert found == expected
    assert 0.999 * RATE < max(found) <= RATE
    assert found[0] < RATE / 10 > found[-1]


@pytest.mark.parametrize("epochs", range(1, 12))
def test_one_cycle_of_any_length_runs_to_its_end(epochs: int) -> None:
    trainer = make_trainer("ONE_CYCLE")
    trainer.epochs = epochs
    optimizer = make_optimizer()
    schedule = Schedule(trainer, optimizer, 1)
    for _ in range(epochs):
        assert 0 < schedule.learning_rate <= RATE * (1 + 1e-9)
        optimizer.step()
        schedule.after_batch()


KINDS = ["CONSTANT", "COSINE", "COSINE_WARM_RESTARTS", "REDUCE_ON_PLATEAU", "ONE_CYCLE"]


@pytest.mark.filterwarnings("error")  # torch warns of steps in the wrong order
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("done", "total"), [(1, EPOCHS), (12, EPOCHS), (1, 7), (4, 7), (7, 7), (4, 30), (12, 30)]
)
def test_it_goes_on_as_if_it_had_always_had_this_many_epochs(
    kind: str, done: int, total: int
) -> None:
    trainer = make_trainer(kind, t_0=2)
    undisturbed = rates(trainer)
    trainer.epochs = total
    optimizer = make_optimizer()
    schedule = Schedule(trainer, optimizer, STEPS)
    go_on(schedule, optimizer, range(done))
    group, state = copy.deepcopy((optimizer.param_groups[0], schedule.state_dict()))

    trainer.epochs = EPOCHS
    optimizer = make_optimizer()
    schedule = Schedule(trainer, optimizer, STEPS)
    # As `checkpoint.restore` does, the optimizer first.
    optimizer.param_groups[0].update({k: v for k, v in group.items() if isinstance(v, float)})
    schedule.load_state_dict(state, done)
    assert go_on(schedule, optimizer, range(done, EPOCHS)) == undisturbed[done * STEPS :]


def test_every_value_of_the_enum_is_honoured() -> None:
    for number in training_pb2.SchedulerType.values():
        trainer = training_pb2.TrainerParams(scheduler_type=number)
        if number:
            Schedule(contract.resolve(trainer), make_optimizer(), STEPS)
        else:
            with pytest.raises(ValueError, match="scheduler_type"):
                Schedule(trainer, make_optimizer(), STEPS)
