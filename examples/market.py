"""The market direction task: daily bars to features and SELL / HOLD / BUY labels.

A label says whether the return over the next five bars, in units of recent volatility, is far
below, near or far above the usual. What counts as far is taken from the training rows alone, so
that about 15 / 70 / 15 % of them are SELL / HOLD / BUY.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

STOCKS = Path(__file__).with_name("stocks.parquet")
HORIZON = 5
TRAIN_FRACTION = 0.6
VALIDATION_FRACTION = 0.2
FEATURES = [
    "scaled_return",
    "range",
    "body",
    "volume_change",
    "volume_zscore",
    "price_zscore",
    "volatility_ratio",
    "momentum",
]
TRAINING = {
    "data.windows.sequence_length": "60",
    "data.windows.feature_columns": ",".join(FEATURES),
    "data.column.horizon": str(HORIZON),
    "data.chronological.train_fraction": str(TRAIN_FRACTION),
    "data.chronological.validation_fraction": str(VALIDATION_FRACTION),
    "trainer.epochs": "20",
    "trainer.learning_rate": "3e-4",
    "trainer.early_stopping_patience": "8",
    "trainer.early_stopping_metric": "VAL_MACRO_F1",
}
"""What the demonstration sets, by path; everything else is the contract's default."""
_TAIL = 0.15


def load_bars(path: Path = STOCKS) -> pd.DataFrame:
    """Daily bars with open, high, low and close adjusted for splits and dividends."""
    bars = pd.read_parquet(path)
    factor = bars["adj_close"] / bars["close"]
    for column in ("open", "high", "low", "close"):
        bars[column] *= factor
    return bars.sort_values(["ticker", "date"], ignore_index=True)


def make_table(bars: pd.DataFrame) -> pd.DataFrame:
    """Ticker, date, the eight features and the label `direction`.

    Every feature looks back only; rows that lack any of it are left out.
    """
    parts = [_features(group) for _, group in bars.groupby("ticker", sort=True)]
    table = pd.concat(parts, ignore_index=True).dropna(ignore_index=True)
    low, high = _thresholds(table)
    ahead = table.pop("ahead")
    table["direction"] = np.select([ahead < low, ahead > high], ["SELL", "BUY"], "HOLD")
    return table.drop(columns="label_date")


def _features(bars: pd.DataFrame) -> pd.DataFrame:
    log_close, log_volume = np.log(bars["close"]), np.log(bars["volume"])
    log_return = log_close.diff()
    volatility = log_return.rolling(20).std()
    return pd.DataFrame(
        {
            "ticker": bars["ticker"],
            "date": bars["date"],
            "scaled_return": log_return / volatility,
            "range": np.log(bars["high"] / bars["low"]) / volatility,
            "body": np.log(bars["close"] / bars["open"]) / volatility,
            "volume_change": log_volume.diff(),
            "volume_zscore": _zscore(log_volume, 20),
            "price_zscore": _zscore(log_close, 20),
            "volatility_ratio": log_return.rolling(5).std() / volatility,
            "momentum": log_close.diff(20) / (volatility * np.sqrt(20)),
            "ahead": (log_close.shift(-HORIZON) - log_close) / (volatility * np.sqrt(HORIZON)),
            "label_date": bars["date"].shift(-HORIZON),
        }
    )


def _zscore(values: pd.Series[float], window: int) -> pd.Series[float]:
    rolling = values.rolling(window)
    return (values - rolling.mean()) / rolling.std()


def _thresholds(table: pd.DataFrame) -> tuple[float, float]:
    """The lower and upper 15 % of the scaled returns known before the training rows end."""
    boundary = np.sort(table["date"])[int(TRAIN_FRACTION * len(table))]
    known = table.loc[table["label_date"] < boundary, "ahead"]
    return float(known.quantile(_TAIL)), float(known.quantile(1 - _TAIL))
