"""Which rows train, validate and test, by the split that the request chose."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trainwire import contract
from trainwire.contract import Violation
from trainwire.v1 import training_pb2
from trainwire_server.data import splits, strata
from trainwire_server.data.labels import UNLABELLED
from trainwire_server.data.table import StoredTable
from trainwire_server.data.windows import Series
from trainwire_server.errors import JobFailure, listed

MARKS = {"train": splits.TRAIN, "validation": splits.VALIDATION, "test": splits.TEST}
"""What a split column holds."""
_MOST_NAMES = 10


@dataclass(frozen=True)
class Partition:
    """Where each row belongs.

    Attributes:
        blocks: int8 [rows], TRAIN, VALIDATION, TEST, or LEFT_OUT for embargoed rows and for those
            without a class that chance could deal out.
        by_order: whether the order of rows decided.
        warnings: what the job is to be warned of.
    """

    blocks: npt.NDArray[np.int8]
    by_order: bool = False
    warnings: list[training_pb2.JobWarning] = field(default_factory=list)


def partition(
    request: training_pb2.TrainingRequest, stored: StoredTable, series: Series
) -> Partition:
    """The block of each row, in the order of `series`.

    Classes are read from the label column alone, and only where chance deals out labelled series
    class by class: classes that are made of training rows cannot be known here.

    Args:
        request: an effective request (`contract.resolve`).

    Raises:
        JobFailure: INVALID_DATA when a split column holds what is no split.
    """
    chosen = request.data.WhichOneof("split")
    if chosen == "stratified":
        return _by_class(request, stored, series)
    if chosen == "split_column":
        return _by_column(request, stored, series)
    split = request.data.chronological
    fractions = splits.Fractions(split.train_fraction, split.validation_fraction)
    blocks = splits.assign_rows(series, fractions, split.embargo_rows)
    return Partition(blocks, by_order=True)


# ------------------------------------------------------------------------ by chance


def _by_class(
    request: training_pb2.TrainingRequest, stored: StoredTable, series: Series
) -> Partition:
    split = request.data.stratified
    classes, class_names = _read_classes(request, stored, series)
    train, validation = split.train_fraction, split.validation_fraction
    shares = (train, validation, 1 - train - validation)
    blocks = np.full(series.row_count, splits.LEFT_OUT, dtype=np.int8)
    rows = np.flatnonzero(classes != UNLABELLED)
    parts, whole = strata.stratify(classes[rows], shares, request.trainer.seed)
    names = [class_names[index] for index in whole]
    # The parts are in the order of the blocks: TRAIN, VALIDATION, TEST.
    blocks[rows] = parts
    return Partition(blocks, warnings=_warn_of_whole("data.stratified", names, 3))


def _read_classes(
    request: training_pb2.TrainingRequest, stored: StoredTable, series: Series
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Class index of each row, UNLABELLED where it is missing, and the names."""
    codes, names = stored.codes(request.data.column.name)
    return codes[series.order], names


def _warn_of_whole(path: str, names: list[str], least: int) -> list[training_pb2.JobWarning]:
    if not names:
        return []
    return [
        training_pb2.JobWarning(
            reason=training_pb2.WARNING_REASON_CLASS_NOT_STRATIFIED,
            message=f"{len(names)} classes have fewer than {least} samples to divide, and train "
            f"only; nothing is known of how well they are told apart: {listed(names, _MOST_NAMES)}",
            field=path,
        )
    ]


# ------------------------------------------------------------------------ by a column


def _by_column(
    request: training_pb2.TrainingRequest, stored: StoredTable, series: Series
) -> Partition:
    split = request.data.split_column
    codes, names = stored.codes(split.name)
    _refuse_unknown_marks(split.name, codes, names)
    marks = np.array([MARKS[name] for name in names], dtype=np.int8)
    blocks = marks[codes[series.order]]
    if splits.VALIDATION in blocks:
        return Partition(blocks, warnings=_warn_of_idle_fraction(split))
    if request.data.WhichOneof("layout") == "windows":
        held = splits.take_last(series, blocks == splits.TRAIN, split.validation_fraction)
        blocks[held] = splits.VALIDATION
        return Partition(blocks, by_order=True)
    return _hold_out(request, blocks, *_read_classes(request, stored, series))


def _refuse_unknown_marks(column: str, codes: npt.NDArray[np.int64], names: list[str]) -> None:
    unknown = [index for index, name in enumerate(names) if name not in MARKS]
    if not unknown:
        return
    allowed = ", ".join(MARKS)
    row = int(np.flatnonzero(np.isin(codes, unknown))[0])
    values = listed([repr(names[index][:80]) for index in unknown], _MOST_NAMES)
    raise JobFailure(
        training_pb2.FAILURE_REASON_INVALID_DATA,
        f"column {column!r} holds {values} (first in row {row} of the table, counted from 0); "
        f"allowed in a split column: {allowed}",
        (Violation("data.split_column.name", f"allowed values of the column: {allowed}"),),
    )


def _hold_out(
    request: training_pb2.TrainingRequest,
    blocks: npt.NDArray[np.int8],
    classes: npt.NDArray[np.int64],
    class_names: list[str],
) -> Partition:
    """Takes the validation samples from those that train, class by class."""
    share = request.data.split_column.validation_fraction
    rows = np.flatnonzero((blocks == splits.TRAIN) & (classes != UNLABELLED))
    parts, whole = strata.stratify(classes[rows], (1 - share, share), request.trainer.seed)
    # The parts are in the order of the blocks: TRAIN, VALIDATION.
    blocks[rows] = parts
    names = [class_names[index] for index in whole]
    return Partition(blocks, warnings=_warn_of_whole("data.split_column", names, 2))


def _warn_of_idle_fraction(split: training_pb2.ColumnSplit) -> list[training_pb2.JobWarning]:
    """Who set the share is not known here, but nobody who left it out gets another one."""
    default = contract.resolve(training_pb2.ColumnSplit()).validation_fraction
    if split.validation_fraction == default:
        return []
    return [
        training_pb2.JobWarning(
            reason=training_pb2.WARNING_REASON_FIELD_WITHOUT_EFFECT,
            message=f"set, but without effect: column {split.name!r} marks validation rows itself",
            field="data.split_column.validation_fraction",
        )
    ]
