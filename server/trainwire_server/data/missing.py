"""Missing values: which columns may have them, and the rows that are left out because of them.

A value is missing where the table has none (null), or NaN in a column of floating point numbers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainwire import gaps
from trainwire.contract import Violation
from trainwire.v1 import training_pb2
from trainwire_server.data.suitability import feature_columns
from trainwire_server.data.table import StoredTable
from trainwire_server.data.targets import find_target
from trainwire_server.data.windows import Series, keep_rows
from trainwire_server.errors import JobFailure, listed

_MOST_NAMES = 10
_Rows = npt.NDArray[np.bool_]


def open_table(request: training_pb2.TrainingRequest, stored: StoredTable) -> StoredTable:
    """The table with gaps where the request allows them: NaN in numbers, -1 in codes.

    Features have them, and what labels are made of: that is never made up, and windows that need
    what is missing have no label.
    """
    policy = request.data.missing_values
    if policy not in (
        training_pb2.MISSING_VALUES_FORWARD_FILL,
        training_pb2.MISSING_VALUES_DROP,
    ):
        return stored
    features = feature_columns(request, stored.types())
    return stored.with_gaps_in({*features, find_target(request).column})


def leave_out(request: training_pb2.TrainingRequest, stored: StoredTable, series: Series) -> Series:
    """The series without the rows that lack features, by the request's `missing_values`.

    Under DROP every row without a feature. Under FORWARD_FILL a series' rows before a feature's
    first value, which nothing can fill but a look ahead; of labelled series those with a channel
    that begins without a value. Labels have no say: predictions are made without them, and must be
    made of the same windows.

    Args:
        request: an effective request (`contract.resolve`).
        stored: from `open_table`.
        series: all rows.

    Raises:
        JobFailure: INVALID_DATA when no row is left.
    """
    left_out, counts = np.zeros(series.row_count, dtype=np.bool_), {}
    for name in feature_columns(request, stored.types()) if stored.gaps else ():
        lacking = _lacks(request, stored, series, name)
        counts[name] = int(lacking.sum())
        left_out |= lacking
    if left_out.all():
        raise _nothing_left(counts, series)
    names = [name for name, count in counts.items() if count]
    return keep_rows(series, ~left_out, names) if names else series


def _lacks(
    request: training_pb2.TrainingRequest, stored: StoredTable, series: Series, name: str
) -> _Rows:
    """Rows that one column makes unusable, in the order of `series`."""
    is_list = request.data.WhichOneof("layout") == "samples"
    column = stored.lists(name) if is_list else stored.numbers(name)[:, np.newaxis]
    missing = np.isnan(np.take(column, series.order, axis=0))
    if request.data.missing_values == training_pb2.MISSING_VALUES_DROP:
        return np.asarray(missing.any(axis=1))
    if is_list:
        return np.asarray(missing[:, 0])
    return gaps.leading(missing[:, 0], np.repeat(series.bounds[:-1], series.lengths))


def _nothing_left(counts: dict[str, int], series: Series) -> JobFailure:
    found = [f"{name!r} {count}" for name, count in counts.items() if count]
    return JobFailure(
        training_pb2.FAILURE_REASON_INVALID_DATA,
        f"data.missing_values leaves out all {series.row_count} rows; rows that each column leaves "
        f"out by itself: {listed(found, _MOST_NAMES)}; leave out such a column or fill it before",
        (Violation("data.missing_values", "some rows must have values of all features"),),
    )
