"""Labelled series in files: `.ts` (aeon, sktime) and UCR `.tsv`, as tables of the samples layout.

A table has a row per series, a list column per channel (`channel_0`, `channel_1`...), the column
`label`, and the column `split` where a training and a test file are read together. Labels that are
all whole numbers become integers, others are text.

In `.ts` files comments begin with `#` or `%`, the header with `@`; after `@data` each line is a
series: channels divided by `:`, their values by `,`, the class label last (the format as written by
https://www.aeon-toolkit.org). In UCR files each line is a series: label, then values, divided by
tabs (https://www.cs.ucr.edu/~eamonn/time_series_data_2018/). `?` and `NaN` are missing values. All
series must be of one length; time stamps and regression targets are refused.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainwire_client.errors import UnreadableDataError

__all__ = ["LABEL", "SPLIT", "SUFFIXES", "channel_name", "is_series_file", "read_table"]

SUFFIXES = (".ts", ".tsv")
LABEL, SPLIT = "label", "split"
_MISSING = "?"
_ENDINGS = {"_TRAIN": "train", "_TEST": "test"}
"""What the name of a file ends in, and what its rows are marked in the split column."""


def is_series_file(path: Path) -> bool:
    """Whether the name says that the file holds labelled series."""
    return path.suffix.lower() in SUFFIXES


def channel_name(number: int) -> str:
    """Column of a channel, counted from 0."""
    return f"channel_{number}"


def read_table(paths: Sequence[Path], pa: Any) -> Any:
    """The series of one file, or of a training and a test file, as an Arrow table.

    Args:
        paths: one file; or two, whose names end in _TRAIN and _TEST, in any order.
        pa: the module pyarrow.

    Raises:
        UnreadableDataError: a file is not what its name says, or series differ in length or number
            of channels; the message says which line and what is allowed.
    """
    marks = _marks(paths)
    series = _Series()
    for mark in sorted(marks, reverse=True):  # train before test
        _read(marks[mark], series)
        series.splits += [mark] * (len(series.labels) - len(series.splits))
    columns = {
        channel_name(i): _lists(channel, series.length, pa)
        for i, channel in enumerate(series.channels)
    }
    columns[LABEL] = pa.array(_plain_labels(series.labels))
    if len(marks) > 1:
        columns[SPLIT] = pa.array(series.splits)
    return pa.table(columns)


def _marks(paths: Sequence[Path]) -> dict[str, Path]:
    """The files by what their rows are marked; one file has no mark."""
    if len(paths) == 1:
        return {"": paths[0]}
    found = {
        mark: path
        for path in paths
        for ending, mark in _ENDINGS.items()
        if path.stem.upper().endswith(ending)
    }
    if len(paths) != 2 or len(found) != 2:
        names = ", ".join(str(path) for path in paths)
        raise UnreadableDataError(
            f"cannot tell which file trains and which tests: {names}; allowed: one file, or two, "
            "the one's name ending in _TRAIN and the other's in _TEST, such as A_TRAIN.ts A_TEST.ts"
        )
    return found


def _lists(values: array[float], length: int, pa: Any) -> Any:
    # `from_pandas` makes missing values of NaN, which text has no other use for.
    flat = pa.array(values, pa.float64(), from_pandas=True)
    return pa.FixedSizeListArray.from_arrays(flat, length)


def _plain_labels(labels: list[str]) -> list[int] | list[str]:
    whole = all(re.fullmatch(r"[+-]?\d{1,18}", label, re.ASCII) for label in labels)
    return [int(label) for label in labels] if whole else labels


@dataclass
class _Series:
    """What was read so far.

    Attributes:
        channels: the values of each channel, one series after the other; NaN where missing.
        length: values of a series in each channel.
        first: where the first series stands, for errors.
    """

    channels: list[array[float]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    length: int = 0
    first: str = ""

    def add(self, values: list[list[str]], label: str, place: str) -> None:
        """One series: the texts of each channel's values."""
        if not self.first:
            self.channels = [array("d") for _ in values]
            self.length, self.first = len(values[0]), place
        if len(values) != len(self.channels):
            raise UnreadableDataError(
                f"{place}: {len(values)} channels, but {len(self.channels)} in {self.first}; "
                "allowed: as many in every series"
            )
        for channel, texts in enumerate(values):
            if len(texts) != self.length:
                raise UnreadableDataError(
                    f"{place}: {len(texts)} values in {channel_name(channel)}, but {self.length} "
                    f"in {self.first}; allowed: series of one length (cut or pad them)"
                )
            self.channels[channel].extend(_numbers(texts, place))
        self.labels.append(label)


def _numbers(texts: list[str], place: str) -> list[float]:
    """All at once where every one is a number; missing values are NaN."""
    try:
        return list(map(float, texts))
    except ValueError:
        return [_number(text.strip(), place) for text in texts]


def _number(text: str, place: str) -> float:
    if text == _MISSING:
        return math.nan
    try:
        return float(text)
    except ValueError:
        raise UnreadableDataError(
            f"{place}: {text[:40]!r} is not a number; allowed: numbers, ? for a missing one"
        ) from None


# ------------------------------------------------------------------------ files


def _read(path: Path, series: _Series) -> None:
    read = _read_ts if path.suffix.lower() == ".ts" else _read_ucr
    before = len(series.labels)
    try:
        with path.open(encoding="utf-8-sig") as file:
            read(_numbered(path, file), series)
    except OSError as error:
        raise UnreadableDataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UnreadableDataError(f"cannot read {path}: it is not UTF-8 text") from error
    if len(series.labels) == before:
        raise UnreadableDataError(f"cannot read {path}: there is no series in it")


_Lines = Iterator[tuple[str, str]]


def _numbered(path: Path, file: Any) -> _Lines:
    """Each line that says something, and its place."""
    for number, line in enumerate(file, 1):
        text = line.strip()
        if text:
            yield f"{path}, line {number}", text


def _read_ucr(lines: _Lines, series: _Series) -> None:
    for place, text in lines:
        label, *values = text.split("\t")
        if not values:
            raise UnreadableDataError(
                f"{place}: no tab in it; allowed in a .tsv file: a label and the values of a "
                "series, divided by tabs (upload other tables as .csv)"
            )
        series.add([values], label.strip(), place)


def _read_ts(lines: _Lines, series: _Series) -> None:
    known = _read_ts_header(lines)
    for place, text in lines:
        if text[0] in "#%":
            continue
        if "(" in text:
            raise UnreadableDataError(f"{place}: {_TIMES}")
        *channels, label = text.split(":")
        if not channels:
            raise UnreadableDataError(f"{place}: no label; allowed: VALUES:LABEL")
        if label.strip() not in known:
            names = ", ".join(sorted(known))[:200]
            raise UnreadableDataError(
                f"{place}: {label.strip()[:40]!r} is no label; @classLabel allows: {names}"
            )
        series.add([channel.split(",") for channel in channels], label.strip(), place)


_TIMES = "the file has time stamps; allowed: values alone, evenly spaced (@timeStamps false)"


def _read_ts_header(lines: _Lines) -> set[str]:
    """The class labels that the header allows."""
    labels: set[str] = set()
    place = "the file"
    for place, text in lines:
        if text[0] in "#%":
            continue
        key, *words = text.split()
        if key.lower() == "@data":
            return _checked_labels(labels, place)
        if not key.startswith("@"):
            break
        if key.lower() == "@timestamps" and words[:1] and words[0].lower() == "true":
            raise UnreadableDataError(f"{place}: {_TIMES}")
        if key.lower() == "@classlabel" and words[:1] and words[0].lower() == "true":
            labels.update(words[1:])
    raise UnreadableDataError(f"{place}: @data is missing before it; is this a .ts file?")


def _checked_labels(labels: set[str], place: str) -> set[str]:
    if not labels:
        raise UnreadableDataError(
            f"{place}: no class labels were named before it; allowed: @classLabel true LABEL "
            "LABEL... (targets of regression are no classes)"
        )
    return labels
