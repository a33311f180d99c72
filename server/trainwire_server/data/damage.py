"""Turns what Arrow says about an upload's bytes into errors that say where they are wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa

from trainwire_server.errors import BrokenUpload

ARROW_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)
_T = TypeVar("_T")
_Apply = Callable[[pa.Array], pa.Array]


def guard(read: Callable[[], _T]) -> _T:
    """The result of `read`; whatever Arrow says about the bytes is about the upload.

    Raises:
        BrokenUpload: Arrow could not read them.
    """
    try:
        return read()
    except ARROW_ERRORS as error:
        raise BrokenUpload(f"{_what(error)}: {reason(error)}") from error


def apply_to_column(name: str, values: pa.Array, rows_before: int, apply: _Apply) -> pa.Array:
    """The result of `apply`; when it fails, the error names the first row that it fails on.

    Args:
        name: the column.
        values: a piece of it.
        rows_before: rows of the table before this piece; rows count from 1.

    Raises:
        BrokenUpload: `apply` failed.
    """
    try:
        return apply(values)
    except ARROW_ERRORS as error:
        index = first_failure(values, apply)
        row = "" if index is None else f"row {rows_before + index + 1}, "
        raise BrokenUpload(f"{_what(error)}: {row}column {name!r}: {reason(error)}") from error


def first_failure(values: pa.Array, apply: _Apply) -> int | None:
    """Index of the first value that `apply` fails on, by bisection.

    None if it is no single value's fault, such as that of a dictionary all values share.
    """
    if pa.types.is_dictionary(values.type) and _fails(values.slice(0, 0), apply):
        return None
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        if _fails(values.slice(low, middle - low), apply):
            high = middle
        else:
            low = middle
    return low if _fails(values.slice(low, 1), apply) else None


def _fails(values: pa.Array, apply: _Apply) -> bool:
    try:
        apply(values)
    except ARROW_ERRORS:
        return True
    return False


def _what(error: Exception) -> str:
    """Damaged bytes can ask for any amount of memory, so that case names both causes."""
    if isinstance(error, MemoryError):
        return "the upload takes more memory to read than the server has for it, or is damaged"
    return "the upload is damaged or truncated"


def reason(error: Exception) -> str:
    """The first line of what Arrow says: what follows is about Arrow's own code."""
    return str(error).partition("\n")[0]


def refuse_equal_names(names: list[str]) -> None:
    """Raises BrokenUpload when there is no column, or two of one name."""
    if not names:
        raise BrokenUpload("the upload has no columns")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        shown = ", ".join(repr(name) for name in twice[:10])
        raise BrokenUpload(f"column names must differ from each other; there twice: {shown}")
