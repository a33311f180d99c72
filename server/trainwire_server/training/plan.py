"""What a request comes to on its dataset, found out without training."""

from __future__ import annotations

from pathlib import Path

import torch

from trainwire import contract
from trainwire.v1 import training_pb2
from trainwire_server.data.labels import Thresholds
from trainwire_server.data.prepare import Prepared, Split, prepare
from trainwire_server.training import bundle, memory
from trainwire_server.training.devices import memory_errors_explained
from trainwire_server.training.setup import Setup, set_up


def plan(
    request: training_pb2.TrainingRequest, table: Path, threads: int
) -> tuple[training_pb2.TrainingPlan, list[training_pb2.JobWarning]]:
    """All that `fit` does before the first epoch; nothing is written.

    Args:
        request: what would be trained; defaults are filled in.
        table: the dataset's Arrow file.
        threads: threads to compute with on the CPU.

    Returns:
        The plan, whose `started` is that of `fit`, and the warnings that `fit` would begin with.

    Raises:
        JobFailure: the data cannot be used, or OUT_OF_MEMORY, DEVICE_UNAVAILABLE.
    """
    effective = contract.resolve(request)
    with memory_errors_explained():
        prepared = prepare(effective, table)
        setup = set_up(effective, prepared, threads)
        planned = training_pb2.TrainingPlan(
            started=describe_start(effective, prepared, setup),
            memory_estimate_bytes=memory.estimate_bytes(effective, prepared, setup, table),
        )
    return planned, [*prepared.warnings, *setup.warnings]


def describe_start(
    request: training_pb2.TrainingRequest, prepared: Prepared, setup: Setup
) -> training_pb2.JobStarted:
    """What a run is about to train on and with.

    Args:
        request: effective parameters (`contract.resolve`).
        prepared: from `data.prepare`.
        setup: from `set_up`.
    """
    return training_pb2.JobStarted(
        device=str(setup.device),
        precision=setup.precision,
        threads=setup.threads,
        deterministic=request.trainer.deterministic,
        class_names=prepared.class_names,
        feature_columns=prepared.feature_columns,
        class_counts=setup.balance.counts.tolist(),
        balanced_class_counts=setup.balance.balanced_counts.tolist(),
        class_weights=setup.balance.weights.tolist(),
        train=_size(prepared.train),
        validation=_size(prepared.validation),
        test=_size(prepared.test),
        purged_windows=prepared.purged_windows,
        unlabelled_windows=prepared.unlabelled_windows,
        parameter_count=bundle.count_parameters(setup.model),
        request=request,
        torch_version=str(torch.__version__),
        return_thresholds=_thresholds(prepared.thresholds),
        unscaled_windows=prepared.unscaled_windows,
        dropped_rows=prepared.dropped_rows,
        filled_values=prepared.filled_values,
    )


def _thresholds(thresholds: Thresholds | None) -> training_pb2.ReturnThresholds | None:
    if thresholds is None:
        return None
    return training_pb2.ReturnThresholds(
        lower=thresholds.lower,
        upper=thresholds.upper,
        volatility_window=thresholds.volatility_window,
    )


def _size(split: Split) -> training_pb2.SplitSize:
    return training_pb2.SplitSize(rows=split.rows, windows=len(split.starts))
