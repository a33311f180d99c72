"""From a file to windows, as the trainer makes them, to a table of predicted classes.

pyarrow, NumPy and onnxruntime are imported on first use.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from trainwire.v1 import dataset_pb2, training_pb2
from trainwire_client import series
from trainwire_client.errors import UnreadableDataError
from trainwire_client.onnx_model import OnnxModel, load_onnx_model, needed
from trainwire_client.report import table_lines
from trainwire_client.request_file import read_request
from trainwire_client.tables import find_format

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["PREDICTED", "PROBABILITY", "ROW", "SUFFIXES", "Predictions", "predict", "write"]

ROW, PREDICTED, PROBABILITY = "row", "predicted", "probability_"
"""Columns of the result; the last is followed by the name of a class."""
_STEPS = 2**14
"""Rows of windows that are taken out of the table at once."""
_GAPS_ALLOWED = (training_pb2.MISSING_VALUES_FORWARD_FILL, training_pb2.MISSING_VALUES_DROP)
_ROWS_SHOWN, _COLUMNS_SHOWN = 20, 10


@dataclass(frozen=True)
class Predictions:
    """What a model says about a table.

    Attributes:
        table: pyarrow Table, a row for each prediction in the order of the data: `row`, the data's
            row that it is about (the last of its window), counted from 0; that row's time and group
            where the model was trained with such columns; `predicted`, the name of the most
            probable class, or of that with the largest probability / threshold where the model has
            decision thresholds; `probability_NAME` for each class, float32.
        skipped: rows of the data without a prediction: too few rows of their series come before,
            or they are dropped.
        dropped: rows left out because they lack values, as in training.
        filled: missing values taken from the row before, as in training.
    """

    table: Any
    skipped: int
    dropped: int = 0
    filled: int = 0


def predict(bundle: str | Path, data: str | Path) -> Predictions:
    """Predict for every row of a file that ends a window, or that is a labelled series.

    Args:
        bundle: folder of a downloaded model.
        data: Parquet, CSV, Arrow or Feather file, or labelled series (.ts, UCR .tsv); with the
            columns that the model was trained on, in any order; others are passed over.

    Raises:
        MissingExtraError: onnxruntime, NumPy or pyarrow is not installed.
        UnreadableModelError: the folder has no usable `model.onnx`.
        UnreadableRequestError: its `request.json` cannot be read.
        InvalidRequestError: that has fields which this version does not know.
        UnreadableDataError: the file cannot be read; columns are missing, are no numbers or have
            values missing where the training refused them; or it has no window.
    """
    pa = needed("pyarrow")
    model = load_onnx_model(bundle)
    request = read_request(Path(bundle) / "request.json")
    keys = _key_columns(request)
    table = _read(Path(data), [*model.feature_columns, *keys.values()], pa)
    policy = request.data.missing_values
    for name in keys.values() if policy in _GAPS_ALLOWED else dict.fromkeys(table.column_names):
        _refuse_missing(name, table[name].null_count)
    is_series = request.data.WhichOneof("layout") == "samples"
    read = _series(table, model, policy) if is_series else _windows(table, model, keys, policy)
    probabilities = _probabilities(model, read.batches)
    found = _result(table.select(list(keys.values())), read.rows, probabilities, model, pa)
    return Predictions(found, table.num_rows - len(read.rows), read.dropped, read.filled)


def _key_columns(request: training_pb2.TrainingRequest) -> dict[str, str]:
    """The columns that say where a row stands, by what they say."""
    layout = request.data.windows
    found = {}
    if layout.HasField("group_column"):
        found["group"] = layout.group_column
    if layout.HasField("time_column"):
        found["time"] = layout.time_column
    return found


# ------------------------------------------------------------------------ reading


def _read(path: Path, columns: list[str], pa: Any) -> Any:
    """These columns of a file, as an Arrow table."""
    with _readable(path, pa):
        names, read = _opened(path, pa)
        missing = [name for name in columns if name not in names]
        if missing:
            raise UnreadableDataError(
                f"{path} has no column {', '.join(map(repr, missing))}, which the model was "
                f"trained with; there are: {', '.join(map(repr, names[:50]))}"
            )
        return read(list(dict.fromkeys(columns)))


@contextmanager
def _readable(path: Path, pa: Any) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnreadableDataError(f"cannot read {path}: {error.strerror or error}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UnreadableDataError(f"cannot read {path}: {error}") from error


def _opened(path: Path, pa: Any) -> tuple[list[str], Callable[[list[str]], Any]]:
    """Names of a file's columns, and what reads some of them."""
    if series.is_series_file(path):
        table = series.read_table([path], pa)
        return table.column_names, table.select
    kind = find_format(path)
    if kind == dataset_pb2.DATASET_FORMAT_PARQUET:
        file = needed("pyarrow.parquet").ParquetFile(path)
        return file.schema_arrow.names, file.read
    if kind == dataset_pb2.DATASET_FORMAT_CSV:
        return _opened_csv(path)
    table = _arrow_table(path, pa)
    return table.column_names, table.select


def _opened_csv(path: Path) -> tuple[list[str], Callable[[list[str]], Any]]:
    csv = needed("pyarrow.csv")
    # As the server reads it: no text but none at all is a missing value.
    options: dict[str, Any] = {"null_values": [""], "strings_can_be_null": True}
    lines = csv.ParseOptions(newlines_in_values=True)

    def read(columns: list[str]) -> Any:
        wanted = csv.ConvertOptions(include_columns=columns, **options)
        return csv.read_csv(path, parse_options=lines, convert_options=wanted)

    with csv.open_csv(path, parse_options=lines) as reader:
        return reader.schema.names, read


def _arrow_table(path: Path, pa: Any) -> Any:
    with pa.OSFile(str(path)) as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
        return reader.read_all()


# ------------------------------------------------------------------------ windows

_Policy: TypeAlias = training_pb2.MissingValues.ValueType


@dataclass(frozen=True)
class _Windows:
    """The rows that predictions are about, ascending, and their raw windows, some at a time.

    `dropped` and `filled` are those of `Predictions`.
    """

    rows: npt.NDArray[np.int64]
    batches: Iterator[npt.NDArray[np.float64]]
    dropped: int
    filled: int


def _windows(table: Any, model: OnnxModel, keys: dict[str, str], policy: _Policy) -> _Windows:
    """A window for each row that has enough rows of its series up to it, itself included."""
    import numpy as np

    groups, order = _arrange(table, keys)
    # Column by column: the largest thing here is there once.
    values = np.empty((table.num_rows, len(model.feature_columns)))
    for index, name in enumerate(model.feature_columns):
        values[:, index] = _numbers(name, table[name], policy)[order]
    kept, filled = _complete(values, groups, policy)
    if not kept.all():
        values, groups, order = values[kept], groups[kept], order[kept]
    length = model.history + model.sequence_length
    # Rows of a series lie side by side: a window whose ends are of one series is within it.
    starts = np.flatnonzero(groups[length - 1 :] == groups[: max(0, len(groups) - length + 1)])
    if not len(starts):
        usable = f" ({len(groups)} with the values they need)" if len(groups) < len(kept) else ""
        raise UnreadableDataError(
            f"none of the {table.num_rows} rows{usable} ends a window: "
            f"that takes {length} rows of a series"
        )
    every = np.lib.stride_tricks.sliding_window_view(values, length, axis=0)
    ends = order[starts + length - 1]
    by_row = np.argsort(ends)
    # They overlap: all at once would be `length` times the table.
    size = max(1, _STEPS // length)
    parts = np.split(starts[by_row], range(size, len(starts), size))
    batches = (every[part].swapaxes(1, 2) for part in parts)
    return _Windows(ends[by_row], batches, int((~kept).sum()), filled)


def _complete(
    values: npt.NDArray[np.float64], groups: npt.NDArray[np.int64], policy: _Policy
) -> tuple[npt.NDArray[np.bool_], int]:
    """Which rows lack no value, of [rows, features]; fills them before if the training did."""
    import numpy as np

    from trainwire import gaps

    missing = np.isnan(values)
    if policy != training_pb2.MISSING_VALUES_FORWARD_FILL:
        return np.asarray(~missing.any(axis=1)), 0
    starts = np.searchsorted(groups, groups)
    left_out = np.zeros(len(values), np.bool_)
    for column in missing.T:
        left_out |= gaps.leading(column, starts)
    filled = 0
    for column in values.T:
        usable = column[~left_out]
        filled += gaps.fill(usable)
        column[~left_out] = usable
    return ~left_out, filled


def _arrange(
    table: Any, keys: dict[str, str]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows by series, then by time or else as they are; the series and the row at each place."""
    import numpy as np

    groups, times = np.zeros(table.num_rows, np.int64), np.arange(table.num_rows)
    if "group" in keys:
        groups = table[keys["group"]].combine_chunks().dictionary_encode().indices.to_numpy()
    if "time" in keys:
        times = _times(keys["time"], table[keys["time"]])
    order = np.lexsort((times, groups))
    groups, times = groups[order], times[order]
    equal = np.flatnonzero((groups[1:] == groups[:-1]) & (times[1:] == times[:-1]))
    if len(equal):
        first, second = sorted(order[equal[0] : equal[0] + 2])
        raise UnreadableDataError(
            f"rows {first} and {second} have the same time in column {keys['time']!r} and are of "
            f"one series ({len(equal)} such pairs); allowed: one row for a time and series"
        )
    return groups, order


def _times(name: str, column: Any) -> npt.NDArray[Any]:
    import numpy as np

    times = np.asarray(column.to_numpy())
    if times.dtype.kind not in "iufM":
        raise UnreadableDataError(
            f"column {name!r} is {column.type}; allowed for times: dates, timestamps and numbers"
        )
    return times


def _series(table: Any, model: OnnxModel, policy: _Policy) -> _Windows:
    """Labelled series: each row is one."""
    import numpy as np

    from trainwire import gaps

    if not table.num_rows:
        raise UnreadableDataError("the data have no rows")
    length = model.sequence_length
    values = np.empty((table.num_rows, len(model.feature_columns), length))
    for index, name in enumerate(model.feature_columns):
        values[:, index] = _lists(name, table[name], length, policy)
    fills = policy == training_pb2.MISSING_VALUES_FORWARD_FILL
    lacking = np.isnan(values[:, :, 0] if fills else values).reshape(len(values), -1).any(axis=1)
    if lacking.all():
        raise UnreadableDataError(f"all {len(values)} series lack values that they need")
    if lacking.any():
        values = values[~lacking]
    filled = gaps.fill(values.reshape(-1)) if fills else 0
    return _Windows(np.flatnonzero(~lacking), iter([values]), int(lacking.sum()), filled)


# ------------------------------------------------------------------------ values


def _lists(name: str, column: Any, length: int, policy: _Policy) -> npt.NDArray[np.float64]:
    """A column of lists as float64 [rows, length]."""
    import numpy as np

    types, compute = needed("pyarrow").types, needed("pyarrow.compute")
    kinds = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    if not any(matches(column.type) for matches in kinds):
        raise UnreadableDataError(f"column {name!r} is {column.type}; allowed: lists of numbers")
    lengths = compute.list_value_length(column).drop_null().unique().to_pylist()
    if lengths not in ([length], []):
        raise UnreadableDataError(
            f"column {name!r} holds lists of {min(lengths)} to {max(lengths)} values; "
            f"allowed: {length}, as the model was trained with"
        )
    values = np.full((len(column), length), np.nan)
    there = column.is_valid().to_numpy()
    values[there] = _numbers(name, compute.list_flatten(column), policy).reshape(-1, length)
    return values


def _numbers(name: str, column: Any, policy: _Policy) -> npt.NDArray[np.float64]:
    """A column of numbers or booleans as float64 [rows]; false is 0, true is 1, missing is NaN."""
    import numpy as np

    pa = needed("pyarrow")
    types = pa.types
    kinds = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean)
    if not any(matches(column.type) for matches in kinds):
        raise UnreadableDataError(
            f"column {name!r} is {column.type}; allowed for a feature: numbers and booleans"
        )
    values = np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    if policy in _GAPS_ALLOWED:
        _refuse_infinite(name, int(np.isinf(values).sum()))
    else:
        _refuse_missing(name, int((~np.isfinite(values)).sum()))
    return values


def _refuse_infinite(name: str, count: int) -> None:
    if count:
        raise UnreadableDataError(f"column {name!r} has {count} infinite values; allowed: none")


def _refuse_missing(name: str, count: int) -> None:
    if count:
        raise UnreadableDataError(
            f"column {name!r} has {count} missing, NaN or infinite values; allowed: none "
            "(fill them as before the training, or drop these rows)"
        )


# ------------------------------------------------------------------------ the result


def _probabilities(
    model: OnnxModel, batches: Iterator[npt.NDArray[np.float64]]
) -> npt.NDArray[np.float32]:
    import numpy as np

    try:
        return np.concatenate([model.predict_proba(windows) for windows in batches])
    except ValueError as error:
        raise UnreadableDataError(f"cannot predict: {error}") from error


def _result(
    keys: Any,
    rows: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float32],
    model: OnnxModel,
    pa: Any,
) -> Any:
    """The table of `Predictions`."""
    kept = keys.take(pa.array(rows))
    names = [ROW, *kept.column_names, PREDICTED, *(PROBABILITY + n for n in model.class_names)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UnreadableDataError(
            f"column {twice[0]!r} of the data has the name of a column of the result; rename it"
        )
    found = pa.array(model.names_of(probabilities))
    columns = [pa.array(rows), *kept.columns, found, *map(pa.array, probabilities.T)]
    return pa.Table.from_arrays(columns, names=names)


def write(table: Any, path: Path) -> None:
    """Write the table of `Predictions`, whole or not at all, in the place of an older one.

    Args:
        table: from `predict`.
        path: ends in one of `SUFFIXES`, which says the format.
    """
    with tempfile.TemporaryDirectory(prefix=".trainwire-", dir=path.parent) as folder:
        partial = Path(folder) / path.name
        _WRITERS[path.suffix.lower()](table, partial)
        partial.replace(path)


def _write_csv(table: Any, path: Path) -> None:
    needed("pyarrow.csv").write_csv(table, str(path))


def _write_parquet(table: Any, path: Path) -> None:
    needed("pyarrow.parquet").write_table(table, str(path))


_WRITERS = {".csv": _write_csv, ".parquet": _write_parquet}
SUFFIXES = tuple(_WRITERS)
"""What the name of a file to write may end in."""


# ------------------------------------------------------------------------ for people and programs


def json_rows(table: Any) -> Iterator[dict[str, Any]]:
    """Each row of the table of `Predictions` as what JSON can hold; times as ISO 8601 text."""
    for batch in _plain(table).to_batches(1024):
        yield from batch.to_pylist()


def report_lines(predictions: Predictions) -> Iterator[str]:
    """The last predictions, and how often each class was predicted."""
    table = predictions.table
    shown = _plain(table.slice(max(0, table.num_rows - _ROWS_SHOWN)))
    names = shown.column_names
    if len(names) > _COLUMNS_SHOWN:
        names = names[: names.index(PREDICTED) + 1]
    rows = [tuple(_cell(row[name]) for name in names) for row in shown.to_pylist()]
    if table.num_rows > len(rows):
        yield f"the last {len(rows)} of {table.num_rows} predictions (--json or --output has all)"
    yield from table_lines(tuple(name.upper() for name in names), rows)
    yield ""
    counts = table[PREDICTED].value_counts().to_pylist()
    for count in sorted(counts, key=lambda count: -count["counts"]):
        share = count["counts"] / table.num_rows
        yield f"predicted {count['values']} {count['counts']} times ({share:.1%})"


def skipped_text(predictions: Predictions) -> str:
    """Why some rows have no prediction, and what was filled; a line each, or nothing."""
    short = predictions.skipped - predictions.dropped
    texts = {
        f"{short} rows have no prediction: too few rows of their series come before": short,
        f"{predictions.dropped} rows have no prediction: values are missing": predictions.dropped,
        f"{predictions.filled} missing values were taken from before": predictions.filled,
    }
    return "\n".join(text for text, count in texts.items() if count)


def _plain(table: Any) -> Any:
    """The table with times as text and decimal numbers as floats."""
    pa = needed("pyarrow")
    fields = [pa.field(field.name, _plain_type(field.type, pa)) for field in table.schema]
    return table.cast(pa.schema(fields))


def _plain_type(kind: Any, pa: Any) -> Any:
    types = pa.types
    if types.is_temporal(kind) or types.is_dictionary(kind):
        return pa.string()
    return pa.float64() if types.is_decimal(kind) else kind


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
