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
from trainwire_server.data.targets import find_target
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
class Places:
    """Where all samples with a label lie; what their labels are may not be known yet.

    Attributes:
        starts: int64 [samples], first row of each sample, ascending.
        rows_per_sample: rows of each.
        splits: int8 [samples], the split of each, or LEFT_OUT when purged.
        unlabelled: number of windows without a label.
        flat: number of those that lack nothing but a volatility.
        unscaled: number of windows without enough rows before them to scale by.
    """

    starts: npt.NDArray[np.int64]
    rows_per_sample: int
    splits: npt.NDArray[np.int8]
    unlabelled: int
    flat: int
    unscaled: int

    @property
    def label_rows(self) -> npt.NDArray[np.int64]:
        """The row that each sample takes its label from, int64 [samples]."""
        return self.starts + (self.rows_per_sample - 1)

    def count(self, split: int) -> int:
        """Number of windows in a split."""
        return int((self.splits == split).sum())


@dataclass(frozen=True)
class Samples(Places):
    """All labelled samples.

    Attributes:
        classes: int64 [samples], class index of each.
        class_names: name of each class.
    """

    classes: npt.NDArray[np.int64]
    class_names: list[str]

    def names_in(self, split: int) -> list[str]:
        """Names of the classes that occur in a split, in class order."""
        present = np.unique(self.classes[self.splits == split])
        return [self.class_names[index] for index in present]


def place_samples(
    series: windows.Series,
    spans: labels.Spans,
    blocks: npt.NDArray[np.int8],
    sequence_length: int,
    history: int = 0,
) -> Places:
    """Every window that has a label, assigned to a split or purged; a row where windows take one.

    A sample's span begins with its window, or with the first row that its label looks back to.

    Args:
        history: rows of the same series that a window needs before it, whatever split they are of.

    Raises:
        JobFailure: GROUP_TOO_SHORT when a series has fewer rows than a window with its history.
    """
    all_starts = windows.window_starts(series, sequence_length, history)
    every = all_starts[series.places[all_starts] >= history]
    starts = every[spans.labelled[every + sequence_length - 1]]
    label_rows = starts + sequence_length - 1
    firsts = np.minimum(starts, label_rows - spans.looks_back)
    return Places(
        starts=starts,
        rows_per_sample=sequence_length,
        splits=splits.assign_windows(blocks, firsts, spans.last_rows[label_rows]),
        unlabelled=len(every) - len(starts),
        flat=int(np.isin(every + sequence_length - 1, spans.flat_rows).sum()),
        unscaled=len(all_starts) - len(every),
    )


def take_samples(places: Places, labelled: labels.Labels) -> Samples:
    """The samples with their classes."""
    return Samples(
        **vars(places),
        classes=labelled.classes[places.label_rows],
        class_names=labelled.class_names,
    )


# ------------------------------------------------------------------------ refusals


def refuse_empty_splits(
    request: training_pb2.TrainingRequest,
    series: windows.Series,
    blocks: npt.NDArray[np.int8],
    places: Places,
) -> None:
    """Every split needs a sample.

    Raises:
        JobFailure: EMPTY_SPLIT, with the numbers and the fields that would help.
    """
    empty = [split for split in _NAMES if not places.count(split)]
    if not empty:
        return
    found = "; ".join(
        f"the {_NAMES[split]} split has no {_noun(request)}: {(blocks == split).sum()} of "
        f"{len(blocks)} rows are its own"
        for split in empty
    )
    raise JobFailure(
        training_pb2.FAILURE_REASON_EMPTY_SPLIT,
        f"{found}. {_explain(request, series, places)}Upload more rows or change the fields named.",
        tuple(_empty_split_remedies(request, series, places, empty)),
    )


def _noun(request: training_pb2.TrainingRequest) -> str:
    return "window" if request.data.WhichOneof("layout") == "windows" else "sample"


def _explain(request: training_pb2.TrainingRequest, series: windows.Series, places: Places) -> str:
    """What takes rows away; sentences with a space after each."""
    texts = (
        series.describe_left_out(),
        _explain_split(request),
        _explain_span(request),
        _explain_unscaled(request, places),
        _explain_unlabelled(request, places),
    )
    return "".join(f"{text}. " for text in texts if text)


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
    length, target = request.data.windows.sequence_length, find_target(request)
    back = target.volatility_window
    parts = f"sequence_length {length}, horizon {target.horizon}"
    parts += f", volatility_window {back}" if back else ""
    rows = max(length, back + 1) + target.horizon
    return f"A window with its label takes {rows} rows ({parts}), all of one split"


def _explain_unscaled(request: training_pb2.TrainingRequest, places: Places) -> str:
    if not places.unscaled:
        return ""
    rows = request.data.scaling_window
    return f"{places.unscaled} windows have no history of scaling_window ({rows}) rows"


def _explain_unlabelled(request: training_pb2.TrainingRequest, places: Places) -> str:
    if not places.unlabelled:
        return ""
    target, noun = find_target(request), _noun(request)
    if not target.is_price:
        return f"{places.unlabelled} {noun}s have no label, because it is missing"
    flat = f", or, of {places.flat}, the price did not move" if places.flat else ""
    return (
        f"{places.unlabelled} {noun}s have no label, because rows or prices that it is computed "
        f"from do not exist{flat}"
    )


def _empty_split_remedies(
    request: training_pb2.TrainingRequest,
    series: windows.Series,
    places: Places,
    empty: list[int],
) -> list[Violation]:
    remedies, target = series.left_out_remedies(), find_target(request)
    if places.unscaled:
        remedies["data.scaling_window"] = "a shorter history leaves out fewer windows"
    if places.unlabelled and not target.is_price:
        remedies[target.column_path] = "more rows with a label are needed"
    if _noun(request) == "window":
        remedies |= {
            "data.windows.sequence_length": "shorter windows fit into fewer rows",
            target.horizon_path: "a shorter horizon takes fewer rows",
        }
        if places.flat or target.volatility_window >= request.data.windows.sequence_length:
            remedies[target.volatility_path] = "0 takes returns as they are, without a volatility"
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
        (
            Violation(
                find_target(request).path, "training samples of at least two classes are needed"
            ),
        ),
    )


# ------------------------------------------------------------------------ warnings


def warn_of_unseen_classes(
    request: training_pb2.TrainingRequest, samples: Samples
) -> list[training_pb2.JobWarning]:
    """Classes that no training window has, whether others have them or not."""
    trained = samples.names_in(splits.TRAIN)
    unseen = [name for name in samples.class_names if name not in trained]
    if not unseen:
        return []
    return [
        training_pb2.JobWarning(
            reason=training_pb2.WARNING_REASON_UNSEEN_CLASS,
            message=f"{len(unseen)} of {len(samples.class_names)} classes have no training "
            f"{_noun(request)}, and cannot be learnt: {listed(unseen, MOST_NAMES)}",
            field=find_target(request).path,
        )
    ]


def warn_of_flat_prices(
    request: training_pb2.TrainingRequest, places: Places
) -> list[training_pb2.JobWarning]:
    """Windows without a label because their price has no volatility."""
    if not places.flat:
        return []
    target = find_target(request)
    return [
        training_pb2.JobWarning(
            reason=training_pb2.WARNING_REASON_NO_VOLATILITY,
            message=f"{places.flat} windows have no label and are left out: column "
            f"{target.column!r} did not move in the {target.volatility_window} rows before their "
            "last one, so that returns cannot be divided by its volatility",
            field=target.volatility_path,
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
