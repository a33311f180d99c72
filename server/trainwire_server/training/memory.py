"""How much memory a training takes, estimated before it starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from trainwire.architectures.fitted import FittedNetwork
from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared
from trainwire_server.data.table import StoredTable
from trainwire_server.training import bundle, smote
from trainwire_server.training.extraction import Extraction
from trainwire_server.training.setup import EVALUATION_FACTOR, Setup

_BASE_BYTES = 2**27
"""What torch loads with the first optimizer and the first backward pass."""
_PARAMETER_BYTES = 4 * (5 + 4 + 8)
"""Per parameter: itself, gradient, AdamW's two moments, best weights; a checkpoint's copies of it
and the moments, and of the best weights where newer ones have come; all four as a file, which
safetensors makes twice."""
_ROW_BYTES = 8 * 16
"""Per row while data is prepared: order, series, splits, labels, and copies of one column."""
_SMOTE_BYTES = 2**27
"""What imbalanced-learn loads, with scikit-learn and scipy."""
_BACKWARD_FACTOR = 1.5
"""Gradients of activations come while the activations go."""


def estimate_bytes(
    request: training_pb2.TrainingRequest, prepared: Prepared, setup: Setup, table: Path
) -> int:
    """Peak memory of the run beyond that of an idle process, in bytes; right within a factor of 2.

    Raw windows that are kept to check the ONNX file, the matrix, and the largest of four moments.
    Preparing: the stored columns that are read (memory-mapped), the float32 matrix and some columns
    more. SMOTE: its copies of windows, and the matrix again with synthetic windows behind. Fitting
    a network to training windows: what it says itself. Training: the matrix (and that one),
    positions of samples, parameters, gradients, optimizer state, best weights, a checkpoint that is
    written while the next epoch trains, features that a fixed part of the network gives, and the
    activations of a batch. Activations are measured: a forward pass of one window and one of two
    tell what one window more keeps for the backward pass, which is taken times the batch size;
    evaluation keeps nothing, but its batches are larger, and a layer's inputs and outputs are there
    together.

    Args:
        request: effective parameters (`contract.resolve`).
        prepared: from `data.prepare`.
        setup: from `set_up`; its weights stay as they are.
        table: the dataset's Arrow file.
    """
    rows, matrix = len(prepared.features), prepared.features.nbytes
    preparing = StoredTable(table).size_bytes(prepared.feature_columns) + _ROW_BYTES * rows
    windows = len(setup.train) + len(setup.validation) + len(setup.test)
    positions = 16 * windows + 24 * len(setup.balance.positions)
    parameters = _PARAMETER_BYTES * bundle.count_parameters(setup.model)
    batch = _batch_bytes(setup, request.trainer.batch_size)
    kept = setup.inputs.nbytes if isinstance(setup.inputs, Extraction) else 0
    synthesizing, extended = _synthesis_bytes(request, prepared, setup)
    model, fitting = setup.model, 0
    if isinstance(model, FittedNetwork):
        fitting = extended + model.fitting_bytes(len(prepared.train.starts))
    training = extended + positions + parameters + kept + batch
    raw = prepared.raw_windows.values.nbytes if prepared.raw_windows else 0
    return _BASE_BYTES + matrix + raw + max(preparing, synthesizing, fitting, training)


def _synthesis_bytes(
    request: training_pb2.TrainingRequest, prepared: Prepared, setup: Setup
) -> tuple[int, int]:
    """What SMOTE takes while it works, and what stays of it: a second matrix and libraries."""
    balancing, balance = request.balancing, setup.balance
    is_smote = balancing.oversample_method == training_pb2.OVERSAMPLE_METHOD_SMOTE
    if not (balancing.use_oversampling and is_smote):
        return 0, 0
    # A class that was cut down is among the largest, and does not grow.
    made = np.maximum(balance.balanced_counts - balance.counts, 0)
    if not made.any():
        return 0, 0
    values = prepared.sequence_length * len(prepared.feature_columns)
    rows = 4 * values * int(made.sum())
    extended = prepared.features.nbytes + rows
    working = max(smote.peak_bytes(balance.counts, made, values), rows + extended)
    return _SMOTE_BYTES + working, _SMOTE_BYTES + extended


def _batch_bytes(setup: Setup, batch_size: int) -> int:
    """Peak of one training step or one evaluation step."""
    one, two = (_step_bytes(setup, count) for count in (1, 2))
    steps = (min(batch_size, len(setup.balance.positions)), _evaluated(setup, batch_size))
    sizes = [(b - a) * n + max(0, 2 * a - b) for a, b, n in zip(one, two, steps, strict=True)]
    return max(sizes)


def _evaluated(setup: Setup, batch_size: int) -> int:
    return min(EVALUATION_FACTOR * batch_size, max(len(setup.validation), len(setup.test)))


def _step_bytes(setup: Setup, count: int) -> tuple[int, int]:
    """Bytes of a training step and of an evaluation step of so many windows."""
    model, windows = setup.replicas.one.model, setup.inputs[setup.train.starts[:1].expand(count)]
    saved: dict[int, int] = {}
    layers: list[int] = []

    def note_saved(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def note_layer(_: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        made = output if isinstance(output, tuple) else (output,)
        held = [tensor for tensor in (*inputs, *made) if isinstance(tensor, Tensor)]
        layers.append(sum(tensor.nbytes for tensor in held))

    hooks = [module.register_forward_hook(note_layer) for module in model.modules()]
    with saved_tensors_hooks(note_saved, lambda tensor: tensor), setup.autocast():
        # Kept until the end: it holds the saved tensors, whose addresses must stay theirs.
        logits = model(windows)
    for hook in hooks:
        hook.remove()
    for parameter in model.parameters():
        saved.pop(parameter.untyped_storage().data_ptr(), None)
    training = round(_BACKWARD_FACTOR * sum(saved.values())) + logits.nbytes
    return windows.nbytes + training, windows.nbytes + max(layers)
