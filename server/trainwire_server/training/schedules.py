"""How the learning rate changes from step to step and from epoch to epoch."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer, lr_scheduler

from trainwire.v1 import training_pb2

PLATEAU_EPOCHS = 10
_OVER_ALL_EPOCHS = (lr_scheduler.CosineAnnealingLR, lr_scheduler.OneCycleLR)
"""Their rates depend on `trainer.epochs`."""


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
        self._trainer = trainer
        self._optimizer = optimizer
        self._steps = steps
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
        return {"epochs": self._trainer.epochs, "scheduler": self._scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any], epoch: int) -> None:
        """Go on from the `state_dict` of a schedule that differs in `trainer.epochs` at most.

        If it does, the rates to come are those of a run that had this schedule from its start.

        Args:
            state: taken after `epoch`; the optimizer's is loaded already.
            epoch: epochs that were done.
        """
        same = state["epochs"] == self._trainer.epochs
        if same or not isinstance(self._scheduler, _OVER_ALL_EPOCHS):
            self._scheduler.load_state_dict(state["scheduler"])
        else:
            self._begin_after(epoch)

    def _begin_after(self, epoch: int) -> None:
        self._optimizer.param_groups[0]["lr"] = self._trainer.learning_rate
        self._scheduler = _scheduler(self._trainer, self._optimizer, self._steps)
        # Without gradients this does nothing, but torch warns of schedules that step before it.
        self._optimizer.step()
        if isinstance(self._scheduler, lr_scheduler.OneCycleLR):
            # Its rate follows from the number of the step alone.
            self._scheduler.last_epoch = epoch * self._steps - 1
            self._scheduler.step()
        else:
            # torch derives each rate from the one before: only all of them give the same bits.
            for _ in range(epoch):
                self._scheduler.step()


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
