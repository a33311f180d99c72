"""How the learning rate changes from step to step and from epoch to epoch."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer, lr_scheduler

from trainwire.v1 import training_pb2

PLATEAU_EPOCHS = 10


class Schedule:
    """Sets the learning rate of an optimizer, after every batch or after every epoch.

    Args:
        trainer: effective parameters (`contract.resolve`).
        optimizer: created with `trainer.learning_rate`.
        steps: optimizer steps of an epoch.
    """

    def __init__(
        self, trainer: training_pb2.TrainerParams, optimizer: Optimizer, steps: int
    ) -> None:
        self._optimizer = optimizer
        self._scheduler = _scheduler(trainer, optimizer, steps)

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def after_batch(self) -> None:
        """To be called after every optimizer step."""
        if isinstance(self._scheduler, lr_scheduler.OneCycleLR):
            self._scheduler.step()

    def after_epoch(self, validation_loss: float) -> None:
        """To be called after every epoch, with its validation loss."""
        if isinstance(self._scheduler, lr_scheduler.ReduceLROnPlateau):
            self._scheduler.step(validation_loss)
        elif not isinstance(self._scheduler, lr_scheduler.OneCycleLR):
            self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule is, in numbers, strings and lists; the rate itself is the optimizer's.

        Its lists are the live ones.
        """
        return self._scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the `state_dict` of a schedule with the same parameters."""
        self._scheduler.load_state_dict(state)


def _scheduler(
    trainer: training_pb2.TrainerParams, optimizer: Optimizer, steps: int
) -> lr_scheduler.LRScheduler:
    kind = trainer.scheduler_type
    if kind == training_pb2.SCHEDULER_TYPE_CONSTANT:
        return lr_scheduler.ConstantLR(optimizer, factor=1.0)
    if kind == training_pb2.SCHEDULER_TYPE_COSINE:
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=trainer.epochs)
    if kind == training_pb2.SCHEDULER_TYPE_COSINE_WARM_RESTARTS:
        return lr_scheduler.CosineAnnealingWarmRestarts(
            optimizer, T_0=trainer.scheduler_t_0, T_mult=trainer.scheduler_t_mult
        )
    if kind == training_pb2.SCHEDULER_TYPE_REDUCE_ON_PLATEAU:
        return _plateau(optimizer)
    if kind == training_pb2.SCHEDULER_TYPE_ONE_CYCLE:
        return _one_cycle(optimizer, trainer.learning_rate, trainer.epochs * steps)
    name = training_pb2.SchedulerType.Name(kind)
    raise ValueError(f"trainer.scheduler_type: {name} is not implemented")


def _plateau(optimizer: Optimizer) -> lr_scheduler.ReduceLROnPlateau:
    # torch lowers the rate at the first bad epoch beyond `patience`; any lower loss is a good one.
    return lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.1, patience=PLATEAU_EPOCHS - 1, threshold=0.0, eps=0.0
    )


def _one_cycle(optimizer: Optimizer, peak: float, steps: int) -> lr_scheduler.OneCycleLR:
    # Of the learning rate alone: the contract says nothing about cycling AdamW's betas.
    return lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=steps, cycle_momentum=False)
