"""All labelled samples with their splits, and what keeps them from being trained on.

A sample is a window, or a row of labelled series: a window of one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainwire.contract import Violation
from trainwire.v1 import training_pb2
from trainwire_server.data import labels, splits, windows
from trainwire_server.errors import JobFailure, listed

_NAMES = {splits.TRAIN: "training", splits.VALIDATION: "validation", splits.TEST: "test"}
_SHARE_REMEDIES = {
    splits.TRAIN: ("train_fraction", "a larger share has more rows"),
    splits.VALIDATION: ("validation_fraction", "a larger share has more rows"),
    splits.TEST: ("train_fraction", "a smaller share leaves more rows for the test split"),
}
MOST_NAMES = 10
"""Names that a message lists before it only counts."""


@dataclass(frozen=True)
class Samples:
    """All labelled samples.

    Attributes:
        starts: int64 [samples], first row of each sample, ascending.
        classes: int64 [samples], class index of each.
        splits: int8 [samples], the split of each, or LEFT_OUT when purged.
        class_names: name of each class.
        unlabelled: number of windows without a label.
    """

    starts: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    splits: npt.NDArray[np.int8]
    class_names: list[str]
    unlabelled: int

    def count(self, split: int) -> int:
        """Number of windows in a split."""
        return int((self.splits == split).sum())

    def names_in(self, split: int) -> list[str]:
        """Names of the classes that occur in a split, in class order."""
        present = np.unique(self.classes[self.splits == split])
        return [self.class_names[index] for index in present]


def take_samples(
    series: windows.Series,
    labelled: labels.Labels,
    blocks: npt.NDArray[np.int8],
    sequence_length: int,
) -> Samples:
    """Every window that has a label, assigned to a split or purged; a row where windows take one.

    Raises:
        JobFailure: GROUP_TOO_SHORT when a series has fewer rows than a window.
    """
    every = windows.window_starts(series, sequence_length)
    starts = every[labelled.classes[every + sequence_length - 1] != labels.UNLABELLED]
    ends = starts + sequence_length - 1
    return Samples(
        starts=starts,
        classes=labelled.classes[ends],
        splits=splits.assign_windows(blocks, starts, labelled.last_rows[ends]),
        class_names=labelled.class_names,
        unlabelled=len(every) - len(starts),
    )


# ------------------------------------------------------------------------ refusals


def refuse_empty_splits(
    request: training_pb2.TrainingRequest, blocks: npt.NDArray[np.int8], samples: Samples
) -> None:
    """Every split needs a sample.

    Raises:
        JobFailure: EMPTY_SPLIT, with the numbers and the fields that would help.
    """
    empty = [split for split in _NAMES if not samples.count(split)]
    if not empty:
        return
    found = "; ".join(
        f"the {_NAMES[split]} split has no {_noun(request)}: {(blocks == split).sum()} of "
        f"{len(blocks)} rows are its own"
        for split in empty
    )
    raise JobFailure(
        training_pb2.FAILURE_REASON_EMPTY_SPLIT,
        f"{found}. {_explain(request)}Upload more rows or change the fields named.",
        tuple(_empty_split_remedies(request, empty)),
    )


def _noun(request: training_pb2.TrainingRequest) -> str:
    return "window" if request.data.WhichOneof("layout") == "windows" else "sample"


def _explain(request: training_pb2.TrainingRequest) -> str:
    """What takes rows away; sentences with a space after each."""
    return "".join(
        f"{text}. " for text in (_explain_split(request), _explain_span(request)) if text
    )


def _explain_split(request: training_pb2.TrainingRequest) -> str:
    split = request.data.WhichOneof("split")
    if split == "stratified":
        return "Classes of fewer than three samples train only"
    if split == "split_column":
        column = request.data.split_column.name
        return f"Column {column!r} says where a row belongs: train, validation or test"
    embargo = request.data.chronological.embargo_rows
    return f"An embargo of {embargo} rows is left out between two splits of a series"


def _explain_span(request: training_pb2.TrainingRequest) -> str:
    if _noun(request) == "sample":
        return ""
    length, horizon = request.data.windows.sequence_length, label_horizon(request)
    return (
        f"A window with its label takes {length + horizon} rows "
        f"(sequence_length {length}, horizon {horizon}), all of one split"
    )


def label_horizon(request: training_pb2.TrainingRequest) -> int:
    if request.data.WhichOneof("target") == "threshold":
        return request.data.threshold.horizon
    return request.data.column.horizon


def _empty_split_remedies(
    request: training_pb2.TrainingRequest, empty: list[int]
) -> list[Violation]:
    remedies = {}
    if _noun(request) == "window":
        horizon = f"data.{request.data.WhichOneof('target')}.horizon"
        remedies = {
            "data.windows.sequence_length": "shorter windows fit into fewer rows",
            horizon: "a shorter horizon takes fewer rows",
        }
    for path, why in _split_remedies(request, empty):
        remedies.setdefault(path, why)
    return [Violation(path, why) for path, why in remedies.items()]


def _split_remedies(
    request: training_pb2.TrainingRequest, empty: list[int]
) -> Iterator[tuple[str, str]]:
    split = request.data.WhichOneof("split")
    if split == "stratified":
        yield "data.stratified", "a class of at least three samples is needed"
    elif split == "split_column":
        names = ", ".join(_NAMES[which].removesuffix("ing") for which in empty)
        yield "data.split_column.name", f"more rows marked {names} are needed"
    else:
        yield "data.chronological.embargo_rows", "a shorter embargo leaves out fewer rows"
        for name, why in (_SHARE_REMEDIES[which] for which in empty):
            yield f"data.chronological.{name}", why


def refuse_single_class(request: training_pb2.TrainingRequest, samples: Samples) -> None:
    """Training needs two classes to tell apart.

    Raises:
        JobFailure: SINGLE_CLASS, naming the one that is there.
    """
    present = samples.names_in(splits.TRAIN)
    if len(present) > 1:
        return
    raise JobFailure(
        training_pb2.FAILURE_REASON_SINGLE_CLASS,
        f"all {samples.count(splits.TRAIN)} training {_noun(request)}s are of class {present[0]!r};"
        " at least two classes are needed: change the target or the split, or upload other rows",
        (Violation(target_path(request), "training samples of at least two classes are needed"),),
    )


# ------------------------------------------------------------------------ warnings


def warn_of_unseen_classes(
    request: training_pb2.TrainingRequest, samples: Samples
) -> list[training_pb2.JobWarning]:
    """Classes that validation or test windows have and training windows have not."""
    held_out = samples.names_in(splits.VALIDATION) + samples.names_in(splits.TEST)
    trained = samples.names_in(splits.TRAIN)
    unseen = [name for name in samples.class_names if name in {*held_out} - {*trained}]
    if not unseen:
        return []
    return [
        training_pb2.JobWarning(
            reason=training_pb2.WARNING_REASON_UNSEEN_CLASS,
            message=f"{len(unseen)} of {len(samples.class_names)} classes occur in validation or "
            f"test but not in training, and cannot be learnt: {listed(unseen, MOST_NAMES)}",
            field=target_path(request),
        )
    ]


def warn_of_unaligned_series(series: windows.Series) -> list[training_pb2.JobWarning]:
    """Several series that no common clock aligns: one's future may be another's past."""
    if series.instants is not None or len(series.names) < 2:
        return []
    return [
        training_pb2.JobWarning(
            reason=training_pb2.WARNING_REASON_UNALIGNED_GROUPS,
            message=f"{len(series.names)} series without a time column: each is split by its own "
            "order, so that training rows of one may be later than test rows of another",
            field="data.windows.time_column",
        )
    ]


def target_path(request: training_pb2.TrainingRequest) -> str:
    """Path of the field that says where labels come from."""
    by_column = request.data.WhichOneof("target") == "column"
    return "data.column.name" if by_column else "data.threshold"
