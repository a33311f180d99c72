"""The target that a request chose: its column and the rows it looks at, whichever member it is.

Runs in the server's own process too: it must import neither NumPy nor Arrow.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainwire.v1 import training_pb2


@dataclass(frozen=True)
class Target:
    """Where labels come from.

    Attributes:
        member: of the oneof `data.target`.
        column: what labels are made of.
        column_field: the member's field that names the column.
        horizon: rows after its own that a label is computed from.
        volatility_window: rows before its own that a label is computed from.
    """

    member: str
    column: str
    column_field: str
    horizon: int
    volatility_window: int = 0

    @property
    def is_price(self) -> bool:
        """Whether classes are made of a price's returns; otherwise the column holds them."""
        return self.column_field == "price_column"

    @property
    def path(self) -> str:
        """The field that says which classes there are."""
        return f"data.{self.member}" if self.is_price else self.column_path

    @property
    def column_path(self) -> str:
        """The field that names the column."""
        return f"data.{self.member}.{self.column_field}"

    @property
    def horizon_path(self) -> str:
        """The field that says how far labels look ahead."""
        return f"data.{self.member}.horizon"

    @property
    def volatility_path(self) -> str:
        """The field that says how far labels look back."""
        return f"data.{self.member}.volatility_window"


def find_target(request: training_pb2.TrainingRequest) -> Target:
    """The target of an effective request (`contract.resolve`)."""
    data = request.data
    match data.WhichOneof("target"):
        case "threshold":
            return _of_price("threshold", data.threshold)
        case "quantile":
            return _of_price("quantile", data.quantile, data.quantile.volatility_window)
        case "triple_barrier":
            back = data.triple_barrier.volatility_window
            return _of_price("triple_barrier", data.triple_barrier, back)
        case _:
            return Target("column", data.column.name, "name", data.column.horizon)


def _of_price(
    member: str,
    chosen: training_pb2.ThresholdTarget
    | training_pb2.QuantileTarget
    | training_pb2.TripleBarrierTarget,
    volatility_window: int = 0,
) -> Target:
    return Target(member, chosen.price_column, "price_column", chosen.horizon, volatility_window)
