"""New samples of small classes, made of those they have."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainwire.contract import Violation
from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Split
from trainwire_server.errors import JobFailure, listed

Integers = npt.NDArray[np.int64]
Windows = npt.NDArray[np.float32]

MOST_BYTES = 2**32
"""What takes more memory is refused."""
MOST_PRODUCTS = 10**12
"""Of values, to find neighbours, in all classes: some minutes of a core, in which a job cannot be
cancelled."""
_COPIES_OF_CLASS = 5
_COPIES_MADE = 5
"""Of a class's windows and of those made of them: what imbalanced-learn holds of them at a time,
some of it in double precision."""
_MOST_NAMES = 10


@dataclass(frozen=True)
class Synthesis:
    """Windows to append to those there are.

    Attributes:
        rows: float32 [made x time, features], one window after the other.
        labels: int64 [made], class index of each window.
    """

    rows: Windows
    labels: Integers


def synthesize(
    features: Windows,
    length: int,
    samples: Split,
    classes: int,
    ratio: float,
    neighbors: int,
    threads: int,
    rng: np.random.Generator,
) -> Synthesis:
    """New windows of small classes, until each is at least `ratio` of the largest.

    SMOTE (Chawla et al. 2002), as imbalanced-learn computes it: a new window lies on the line
    between a window of the class and one of its nearest neighbours in the class, at a place drawn
    evenly; windows are points of as many dimensions as they have values. A class of no more samples
    than neighbours takes all others as neighbours; that of one sample repeats it.

    Only windows of classes that grow are copied, one class at a time.

    Args:
        features: float32 [rows, features], scaled.
        length: rows of a window.
        samples: what to make new ones of; every class that occurs grows to
            max(n_c, round(ratio n_max)).
        classes: number of classes.
        ratio: in (0, 1].
        neighbors: at least 1.
        threads: to compute with.
        rng: draws.

    Raises:
        JobFailure: SMOTE_TOO_LARGE.
    """
    counts = np.bincount(samples.labels, minlength=classes)
    missing = missing_samples(counts, ratio)
    values = length * features.shape[1]
    _refuse_too_much(counts, missing, values)
    made = np.empty((int(missing.sum()), length, features.shape[1]), dtype=np.float32)
    views = np.lib.stride_tricks.sliding_window_view(features, length, axis=0)
    done = 0
    for index in np.flatnonzero(missing):
        count, seed = int(missing[index]), int(rng.integers(2**32))
        found = views[samples.starts[samples.labels == index]]
        flat = _interpolate(found.reshape(len(found), -1), count, neighbors, threads, seed)
        made[done : done + count] = flat.reshape(count, *found.shape[1:]).transpose(0, 2, 1)
        done += count
    labels = np.repeat(np.arange(classes), missing)
    return Synthesis(made.reshape(-1, features.shape[1]), labels)


def missing_samples(counts: Integers, ratio: float) -> Integers:
    """int64 [classes]: by how many samples each class that occurs has to grow."""
    floor = round(ratio * int(counts.max()))
    missing: Integers = np.where(counts > 0, np.maximum(floor - counts, 0), 0)
    return missing


def peak_bytes(counts: Integers, missing: Integers, values: int) -> int:
    """Memory that `synthesize` takes at its worst, its result included.

    Args:
        counts: int64 [classes], samples there are.
        missing: int64 [classes], samples to make.
        values: of a window.
    """
    window = 4 * values
    work = (_COPIES_OF_CLASS * counts + _COPIES_MADE * missing)[missing > 0]
    return window * (int(missing.sum()) + int(work.max(initial=0)))


def _interpolate(found: Windows, count: int, neighbors: int, threads: int, seed: int) -> Windows:
    """So many new points of float32 [n, values], made of n points of one class."""
    if len(found) == 1:
        return np.repeat(found, count, axis=0)
    # A second with it: only who asks for it waits.
    from imblearn.over_sampling import SMOTE
    from threadpoolctl import threadpool_limits

    # imbalanced-learn wants two classes. The second one is a point that nothing is made of, and
    # that the first one outgrows it is what it warns of.
    points = np.concatenate([found, np.zeros_like(found[:1])])
    classes = np.arange(len(points)) < len(found)
    smote = SMOTE(
        sampling_strategy={True: len(found) + count},
        k_neighbors=min(neighbors, len(found) - 1),
        random_state=seed,
    )
    with threadpool_limits(threads), warnings.catch_warnings(action="ignore", category=UserWarning):
        resampled: Windows = smote.fit_resample(points, classes)[0]
    return resampled[len(points) :]


def _refuse_too_much(counts: Integers, missing: Integers, values: int) -> None:
    size = peak_bytes(counts, missing, values)
    products = sum(int(n) ** 2 * values for n in counts[missing > 0])
    if size <= MOST_BYTES and products <= MOST_PRODUCTS:
        return
    message = (
        f"SMOTE would make {missing.sum()} windows of {values} values from classes of up to "
        f"{counts[missing > 0].max()}: {size / 2**30:.3g} GiB of memory and {products:.2g} "
        f"products in all to find neighbours; allowed: {MOST_BYTES / 2**30:g} GiB and "
        f"{MOST_PRODUCTS:.0e}; set balancing.oversample_method to OVERSAMPLE_METHOD_REPEAT, or "
        "lower balancing.oversample_ratio"
    )
    field = Violation("balancing.oversample_method", "SMOTE is too large for these data")
    raise JobFailure(training_pb2.FAILURE_REASON_SMOTE_TOO_LARGE, message, (field,))


def warn_of_few_samples(
    counts: Integers, missing: Integers, neighbors: int, names: list[str]
) -> list[training_pb2.JobWarning]:
    """A warning that names the classes with too few samples for so many neighbours."""
    few = [i for i in np.flatnonzero(missing) if counts[i] <= neighbors]
    if not few:
        return []
    alone = [names[i] for i in few if counts[i] == 1]
    repeated = f"; the only one of {listed(alone, _MOST_NAMES)} is repeated" if alone else ""
    sizes = [f"{names[i]} ({counts[i]})" for i in few]
    return [
        training_pb2.JobWarning(
            reason=training_pb2.WARNING_REASON_TOO_FEW_FOR_SMOTE,
            message=f"{len(few)} classes have too few training samples for {neighbors} neighbours "
            f"each, and take those there are: {listed(sizes, _MOST_NAMES)}{repeated}",
            field="balancing.smote_k_neighbors",
        )
    ]
