"""Reads CSV: finds out what each column holds, converts it, and says which line does not fit.

The text is read twice. The first time decides: a column holds what more than half of its fields
are, so that one stray word makes an error with a line number and not a column of text, which
training would pass over.
"""

from __future__ import annotations

import codecs
import csv
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from trainwire_server.data.damage import ARROW_ERRORS, first_failure, reason, refuse_equal_names
from trainwire_server.errors import BrokenUpload

_BLOCK_BYTES = 2**20
"""Arrow keeps up to a hundred times as much in memory, and takes no line that is longer."""
_ZONE = r"(Z|[+-]\d\d(:?\d\d)?)"
_DATE, _TIME = r"\d{4}-\d\d-\d\d", r"[T ]\d\d(:?\d\d(:?\d\d(\.\d{1,9})?)?)?"
_PATTERNS = {
    "integer": r"-?\d{1,19}",
    "float": r"(?i:[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|infinity|nan))",
    "boolean": r"(?i:true|false)",
    "date": _DATE,
    "instant": _DATE + _TIME,
    "zoned": _DATE + _TIME + _ZONE,
}
"""What a field is: the first of these that matches all of it, or else text."""
_FAMILIES = (("integer", "float"), ("boolean",), ("date", "instant"), ("zoned",))
"""Kinds that a column may mix: it holds the last of those it has."""
_TYPES = {
    "integer": pa.int64(),
    "float": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "instant": pa.timestamp("ns"),
    "zoned": pa.timestamp("ns", "UTC"),
    "text": pa.string(),
    "missing": pa.null(),
}
_MEANINGS = {
    "integer": "a whole number of at most 64 bits",
    "float": "a number",
    "boolean": "true or false",
    "date": "a date, such as 2024-01-31",
    "instant": "a date and time without a zone, such as 2024-01-31T09:30:00, from 1678 to 2261",
    "zoned": "a date and time with a zone, such as 2024-01-31T09:30:00Z, from 1678 to 2261",
}


def open_csv(source: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The schema and the batches, read as they are asked for.

    Whole numbers become int64, other numbers float64, true and false bool, ISO 8601 dates date32,
    dates with a time timestamp[ns] (in UTC where they bear a zone), the rest text; a column without
    any value is of Arrow's null type. Empty fields are missing values.

    Args:
        source: comma-separated values in UTF-8, with a header line.

    Raises:
        BrokenUpload: the header is missing or has names twice, a line has more or fewer fields than
            it, text is not UTF-8, or a value does not fit its column; also while the batches are
            read.
    """
    names = _read_names(source)
    kinds = _find_kinds(source, names)
    schema = pa.schema([pa.field(name, _TYPES[kinds[name]]) for name in names])
    return schema, _convert(source, schema, kinds)


# ------------------------------------------------------------------------ reading


def _read_names(source: Path) -> list[str]:
    with source.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise BrokenUpload("the upload is UTF-16 text; allowed: CSV in UTF-8")
    with _Text(source, {}) as text:
        names = text.names()
    if "" in names:
        raise BrokenUpload(f"line 1: column {names.index('') + 1} has no name in the header")
    if all(_is_number(name) for name in names):
        raise BrokenUpload(f"line 1 must name the columns, but holds numbers: {names[:10]}")
    refuse_equal_names(names)
    return names


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


class _Text:
    """The fields of a CSV as Arrow reads them, before anyone asks what they mean."""

    def __init__(self, source: Path, types: dict[str, pa.DataType]) -> None:
        self._source = source
        self._ragged: list[Any] = []
        self._reader = self._guard(lambda: self._open(types))

    def __enter__(self) -> _Text:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def _open(self, types: dict[str, pa.DataType]) -> Any:
        return pcsv.open_csv(
            str(self._source),
            # One thread, because only then Arrow counts lines.
            read_options=pcsv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
            parse_options=pcsv.ParseOptions(
                newlines_in_values=True, invalid_row_handler=self._note_ragged
            ),
            convert_options=pcsv.ConvertOptions(
                column_types=types, null_values=[""], strings_can_be_null=True
            ),
        )

    def _note_ragged(self, row: Any) -> str:
        self._ragged.append(row)
        return "error"

    def names(self) -> list[str]:
        return self._guard(lambda: list(self._reader.schema.names))  # type: ignore[no-any-return]

    def batches(self) -> Iterator[pa.RecordBatch]:
        while (batch := self._guard(self._read_next)) is not None:
            yield batch

    def _read_next(self) -> pa.RecordBatch | None:
        try:
            return self._reader.read_next_batch()
        except StopIteration:
            return None

    def _guard(self, read: Any) -> Any:
        try:
            with _without_undecodable_rows():
                return read()
        except ARROW_ERRORS as error:
            raise BrokenUpload(self._explain(error)) from error

    def _explain(self, error: Exception) -> str:
        if "straddling" in str(error):
            return f"a line is longer than {_BLOCK_BYTES} bytes, the most allowed"
        if not self._ragged:
            return f"the upload cannot be read as CSV: {reason(error)}"
        row = self._ragged[0]
        return (
            f"line {_line_of(self._source, row.number)}: {row.actual_columns} fields where the "
            f"header has {row.expected_columns}: {row.text[:200]!r}"
        )


@contextmanager
def _without_undecodable_rows() -> Iterator[None]:
    """Keeps off stderr that Arrow could not decode a row for `_note_ragged`; its error follows."""
    hook = sys.unraisablehook

    def tell(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, UnicodeDecodeError):
            hook(unraisable)

    sys.unraisablehook = tell
    try:
        yield
    finally:
        sys.unraisablehook = hook


def _pieces(source: Path, names: list[str]) -> Iterator[tuple[int, list[pa.Array]]]:
    """Rows before each piece, and its columns as text."""
    rows = 0
    with _Text(source, dict.fromkeys(names, pa.binary())) as text:
        for batch in text.batches():
            columns = zip(names, batch.columns, strict=True)
            yield rows, [_decode(source, name, values, rows) for name, values in columns]
            rows += batch.num_rows


def _decode(source: Path, name: str, values: pa.Array, rows: int) -> pa.Array:
    decode = partial(pc.cast, target_type=pa.string())
    try:
        return decode(values)
    except ARROW_ERRORS as error:
        index = first_failure(values, decode) or 0
        place = _place(source, rows + index, name)
        raise BrokenUpload(f"{place}: {values[index].as_py()[:50]!r} is not UTF-8") from error


# ------------------------------------------------------------------------ deciding


def _find_kinds(source: Path, names: list[str]) -> dict[str, str]:
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for _, columns in _pieces(source, names):
        for name, values in zip(names, columns, strict=True):
            _count_kinds(values, counts[name])
    return {name: _choose(counts[name]) for name in names}


def _count_kinds(values: pa.Array, counts: Counter[str]) -> None:
    """Adds the number of fields of each kind.

    All at once where Arrow can convert them to the kind most of the column was of so far, which is
    several times faster than matching.
    """
    guess = counts.most_common(1)[0][0] if counts else "integer"
    if guess != "text" and _converts(values, guess):
        counts[guess] += len(values) - values.null_count
        return
    left = pc.utf8_trim_whitespace(values.drop_null())
    for kind, pattern in _PATTERNS.items():
        matches = pc.match_substring_regex(left, f"^({pattern})$")
        counts[kind] += pc.sum(matches).as_py() or 0
        left = left.filter(pc.invert(matches))
    counts["text"] += len(left)


def _converts(values: pa.Array, kind: str) -> bool:
    try:
        _parse(values, kind)
    except ARROW_ERRORS:
        return False
    return True


def _choose(counts: Counter[str]) -> str:
    total = counts.total()
    if not total:
        return "missing"
    for family in _FAMILIES:
        if 2 * sum(counts[kind] for kind in family) > total:
            return next(kind for kind in reversed(family) if counts[kind])
    return "text"


# ------------------------------------------------------------------------ converting


def _convert(source: Path, schema: pa.Schema, kinds: dict[str, str]) -> Iterator[pa.RecordBatch]:
    for rows, columns in _pieces(source, schema.names):
        named = zip(schema.names, columns, strict=True)
        arrays = [_convert_column(source, name, each, rows, kinds[name]) for name, each in named]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _convert_column(source: Path, name: str, values: pa.Array, rows: int, kind: str) -> pa.Array:
    parse = partial(_parse, kind=kind)
    try:
        return parse(values)
    except ARROW_ERRORS as error:
        index = first_failure(values, parse) or 0
        raise BrokenUpload(
            f"{_place(source, rows + index, name)}: {values[index].as_py()[:200]!r} is not "
            f"{_MEANINGS[kind]}, as most values of the column are; correct it, leave the field "
            "empty for a missing value, or upload Arrow or Parquet, where types are stated"
        ) from error


def _parse(values: pa.Array, kind: str) -> pa.Array:
    if kind == "missing":
        return pa.nulls(len(values))
    try:
        return values.cast(_TYPES[kind])
    except ARROW_ERRORS:
        return pc.utf8_trim_whitespace(values).cast(_TYPES[kind])


def _place(source: Path, row: int, name: str) -> str:
    """Row 0 stands in the first line after the header."""
    return f"line {_line_of(source, row + 2)}, column {name!r}"


def _line_of(source: Path, record: int) -> int:
    """Number of the line that a record begins in: there are blank lines, and values of several."""
    limit = csv.field_size_limit(sys.maxsize)
    begin = 1
    try:
        with source.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.reader(file)
            for fields in reader:
                record -= bool(fields)
                if record == 0:
                    break
                begin = reader.line_num + 1
    finally:
        csv.field_size_limit(limit)
    return begin
