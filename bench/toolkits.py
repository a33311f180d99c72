"""The toolkits that training is measured against, each with all its extras switched off."""

from __future__ import annotations

import logging
import time
import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from bench import loops
from bench.loops import Run
from bench.task import Task
from torch import Tensor, nn


def define_missing_operators() -> None:
    """Let torchvision be imported, which both toolkits do, where torch is built for CPUs alone.

    The only torchvision on PyPI is built for torch with CUDA; its compiled part does not load here,
    and its import then fails for want of two operators that nothing here uses.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            signature = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(signature)  # type: ignore[no-untyped-call]
    _libraries.append(library)


_libraries: list[torch.library.Library] = []
"""An operator goes when the library that defined it does."""


def lightning(task: Task, workers: int) -> Run:
    """PyTorch Lightning's Trainer: no logger, checkpoints, progress bar or summary."""
    from lightning.pytorch import Callback, LightningModule, Trainer

    class Classifier(LightningModule):  # type: ignore[misc] # has no types
        def __init__(self) -> None:
            super().__init__()
            self.network = loops.make_network(task)

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            windows, labels = batch
            return nn.functional.cross_entropy(self.network(windows), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return loops.make_optimizer(task, self.network)

    class Clock(Callback):  # type: ignore[misc] # has no types
        def on_train_epoch_start(self, *_: Any) -> None:
            self.began = time.perf_counter()

        def on_train_epoch_end(self, *_: Any) -> None:
            seconds.append(time.perf_counter() - self.began)

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    seconds: list[float] = []
    classifier = Classifier()
    train, validation = loops.make_loaders(task, workers)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=task.request.trainer.epochs,
        gradient_clip_val=task.request.trainer.gradient_clip_norm,
        callbacks=[Clock()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that more workers might be faster: both are tried
        trainer.fit(classifier, train)
    loss = loops.validation_loss(classifier.network, validation)
    return Run(loops.rate(len(task.prepared.train.starts), seconds), loss)


def tsai(task: Task) -> Run:
    """tsai's learner (fastai's loop) on windows as an array, which it takes whole batches from."""
    from fastai.callback.training import GradientClip
    from fastai.learner import Callback, Learner
    from fastai.optimizer import OptimWrapper
    from tsai.data.core import get_ts_dls

    class Clock(Callback):  # type: ignore[misc] # has no types
        def before_train(self) -> None:
            self.began = time.perf_counter()

        def after_train(self) -> None:
            seconds.append(time.perf_counter() - self.began)

    seconds: list[float] = []
    trainer, prepared = task.request.trainer, task.prepared
    network = loops.make_network(task)
    splits = (prepared.train, prepared.validation)
    starts = np.concatenate([split.starts for split in splits])
    view = np.lib.stride_tricks.sliding_window_view(prepared.features, prepared.sequence_length, 0)
    cut = len(prepared.train.starts)
    loaders = get_ts_dls(
        np.ascontiguousarray(view[starts]),
        np.concatenate([split.labels for split in splits]).astype(np.int64),
        splits=(list(range(cut)), list(range(cut, len(starts)))),
        bs=trainer.batch_size,
        drop_last=False,
        device="cpu",
    )
    learner = Learner(
        loaders,
        network,
        loss_func=nn.CrossEntropyLoss(),
        opt_func=partial(OptimWrapper, opt=torch.optim.AdamW),
        wd_bn_bias=True,
        cbs=[GradientClip(trainer.gradient_clip_norm), Clock()],
    )
    with learner.no_bar(), learner.no_logging():
        learner.fit(trainer.epochs, trainer.learning_rate, wd=trainer.weight_decay)
    loss = loops.validation_loss(network, loops.make_loaders(task, 0)[1])
    return Run(loops.rate(cut, seconds), loss)
