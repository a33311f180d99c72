"""The least memory that a job can be trained with, known before anything is allocated.

Runs in the server's own process, from the request and the dataset's stored profile alone. It is a
lower bound: what no smaller batch and no smaller part of one avoids, so that no job is refused that
would train. A dry run (`training.memory`) measures the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from trainwire import contract
from trainwire.architectures import sizes
from trainwire.contract import Violation
from trainwire.v1 import dataset_pb2, system_pb2, training_pb2
from trainwire_server.data.suitability import feature_columns
from trainwire_server.errors import JobTooLarge
from trainwire_server.jobs.devices import Devices
from trainwire_server.jobs.queue import CPU

_MIB = 2**20
_SMALL_BYTES = 2**28
"""Every machine has that, so that for such a job nobody needs to wait for the probe."""
_FEWEST_CLASSES = 2
"""How many there are only the labels say, which nobody has looked at yet."""
_MOST_FIELDS = 4


@dataclass(frozen=True)
class Place:
    """Memory in which a job has something.

    Attributes:
        copies: of the weights, float32, at the end of every epoch.
        computes: whether the network is computed there.
        keeps_data: whether the matrix is surely there.
        prefers_bfloat16: what PRECISION_AUTO may come to there.
    """

    copies: int
    computes: bool
    keeps_data: bool
    prefers_bfloat16: bool


ON_CPU = Place(copies=8, computes=True, keeps_data=True, prefers_bfloat16=False)
"""Weights, gradients, AdamW's two moments, best weights; a snapshot of weights and moments, which a
checkpoint is written from."""
ON_GPU = Place(copies=4, computes=True, keeps_data=False, prefers_bfloat16=True)
"""Weights, gradients, AdamW's two moments. Data that are too large for it stay on the host."""
BESIDE_GPU = Place(copies=1, computes=False, keeps_data=True, prefers_bfloat16=False)
"""The host of a job on a GPU: best weights."""


@dataclass(frozen=True)
class Shape:
    """What the network and the matrix are made for.

    Attributes:
        rows: of the dataset that surely stay; those with missing values may be left out.
        features: columns to learn from.
        time: steps of a window.
    """

    rows: int
    features: int
    time: int


@dataclass(frozen=True)
class Least:
    """The least memory of a training in one place, in bytes.

    Attributes:
        parameters: how many there are.
        copies: of the parameters, gradients and moments among them.
        computing: the parameters, and what the backward pass of one window needs of its forward
            pass: at the first batch there are no gradients and copies yet.
        matrix: the data.
    """

    parameters: int
    copies: int
    computing: int
    matrix: int

    @property
    def total(self) -> int:
        """Of the most that is there together."""
        return self.matrix + max(self.copies, self.computing)

    def __str__(self) -> str:
        weights = f"{self.parameters:,} weights"
        if self.copies > self.computing:
            network = f"{_mib(self.copies)} for {weights}, their gradients, moments and copies"
        else:
            network = f"{_mib(self.computing)} for {weights} and the activations of one window"
        return f"{network}; {_mib(self.matrix)} for the data"


def find_shape(request: training_pb2.TrainingRequest, dataset: dataset_pb2.Dataset) -> Shape:
    """The shape of the data of an effective request that suits its dataset."""
    names = set(feature_columns(request, {each.name: each.type for each in dataset.columns}))
    used = [column for column in dataset.columns if column.name in names]
    lacking = sum(column.null_count + column.non_finite_count for column in used)
    is_samples = request.data.WhichOneof("layout") == "samples"
    longest = max((column.list_lengths.longest for column in used), default=0)
    time = longest if is_samples else request.data.windows.sequence_length
    return Shape(max(dataset.row_count - lacking, 0), len(used), max(time, 1))


def estimate(request: training_pb2.TrainingRequest, shape: Shape, place: Place) -> Least:
    """The least memory that a job takes in a place.

    Args:
        request: an effective request (`contract.resolve`).
        shape: from `find_shape`.
        place: where.
    """
    found = sizes.count(request.model, shape.features, _FEWEST_CLASSES, shape.time)
    weights = 4 * found.parameters
    activations = _value_bytes(request.trainer.precision, place) * found.activations
    steps = shape.time if request.data.WhichOneof("layout") == "samples" else 1
    return Least(
        parameters=found.parameters,
        copies=place.copies * weights,
        computing=weights + activations if place.computes else 0,
        matrix=4 * shape.rows * steps * shape.features if place.keeps_data else 0,
    )


def _value_bytes(precision: training_pb2.Precision.ValueType, place: Place) -> int:
    """Of an activation, at least."""
    if precision == training_pb2.PRECISION_AUTO:
        return 2 if place.prefers_bfloat16 else 4
    return 2 if precision == training_pb2.PRECISION_BF16 else 4


# ------------------------------------------------------------------------ refusing


@dataclass(frozen=True)
class _Limit:
    """So many bytes, and whose they are."""

    bytes: int
    words: str


class MemoryLimit:
    """Refuses what cannot fit into the memory that a training may have.

    Args:
        devices: which there are, with their memory.
        memory_bytes: what a training process may allocate on the host; 0 for as much as there is.
    """

    def __init__(self, devices: Devices, memory_bytes: int) -> None:
        self._devices = devices
        self._memory_bytes = memory_bytes

    def is_small(self, request: training_pb2.TrainingRequest, dataset: dataset_pb2.Dataset) -> bool:
        """Whether `check` refuses it nowhere, and does not ask for the devices; see there."""
        # Nowhere does it take more than on the CPU.
        least = estimate(request, find_shape(request, dataset), ON_CPU).total
        return least <= min(self._memory_bytes or _SMALL_BYTES, _SMALL_BYTES)

    async def check(
        self, request: training_pb2.TrainingRequest, dataset: dataset_pb2.Dataset
    ) -> None:
        """Raise JobTooLarge, with the fields that make it so, if even the least is too much.

        Args:
            request: an effective request (`contract.resolve`) that suits the dataset.
            dataset: the dataset's stored profile.
        """
        if self.is_small(request, dataset):
            return
        shape = find_shape(request, dataset)
        found = list((await self._devices.found()).devices)
        host, gpu = self._host(found), _largest_gpu(found)
        if gpu is None or request.resources.device == training_pb2.DEVICE_CPU:
            _refuse_beyond(host, request, shape, ON_CPU)
        else:
            _refuse_beyond(gpu, request, shape, ON_GPU)
            _refuse_beyond(host, request, shape, BESIDE_GPU)

    async def of_dry_run(self, request: training_pb2.TrainingRequest) -> int:
        """Bytes that a dry run may allocate; 0 for as many as there are.

        Twice what training may: it computes two windows at a time, where training has one. On the
        host it does as well what a GPU has memory of its own for, which may be more than there is.
        """
        if not self._memory_bytes:
            return 0
        found = list((await self._devices.found()).devices)
        is_on_cpu = request.resources.device == training_pb2.DEVICE_CPU
        gpu = None if is_on_cpu else _largest_gpu(found)
        most = 2 * (self._memory_bytes + (gpu.bytes if gpu else 0))
        return min(most, _machine_bytes(found) or most)

    def _host(self, found: list[system_pb2.DeviceInfo]) -> _Limit | None:
        machine = _machine_bytes(found)
        if self._memory_bytes and not 0 < machine < self._memory_bytes:
            return _Limit(self._memory_bytes, "a training process may allocate (--job-memory-mb)")
        return _Limit(machine, "the server's machine has") if machine else None


def _machine_bytes(found: list[system_pb2.DeviceInfo]) -> int:
    """Memory of the host; 0 if that is not known."""
    return next((each.memory_bytes for each in found if each.name == CPU), 0)


def _largest_gpu(found: list[system_pb2.DeviceInfo]) -> _Limit | None:
    sizes_found = [each.memory_bytes for each in found if each.name != CPU]
    return _Limit(max(sizes_found), "the server's largest GPU has") if sizes_found else None


def _refuse_beyond(
    limit: _Limit | None, request: training_pb2.TrainingRequest, shape: Shape, place: Place
) -> None:
    least = estimate(request, shape, place)
    if limit is None or least.total <= limit.bytes:
        return
    fields = _large_fields(request, shape, place)
    message = (
        f"training takes at least {_mib(least.total)}, more than the {_mib(limit.bytes)} that "
        f"{limit.words}: {least}; {contract.listing(fields)}"
    )
    raise JobTooLarge(message, tuple(fields), least.total, limit.bytes)


def _mib(size: int) -> str:
    return f"{-(-size // _MIB):,} MiB"


def _large_fields(
    request: training_pb2.TrainingRequest, shape: Shape, place: Place
) -> list[Violation]:
    """The fields of which a half would save the most, and how much."""
    total = estimate(request, shape, place).total
    found = [
        (total - estimate(half, half_shape, place).total, path, size)
        for path, size, half, half_shape in _halved(request, shape)
    ]
    found.sort(reverse=True)
    return [
        Violation(path, f"{size}: half of it would take {_mib(saving)} less")
        for saving, path, size in found[:_MOST_FIELDS]
        if saving >= found[0][0] / 4
    ]


_Halved = tuple[str, str, training_pb2.TrainingRequest, Shape]


def _halved(request: training_pb2.TrainingRequest, shape: Shape) -> Iterator[_Halved]:
    """Each thing that has a size: its path, its size, and what it comes to with half of that."""
    layout = request.data.WhichOneof("layout")
    yield "dataset", f"{shape.rows:,} rows", request, replace(shape, rows=shape.rows // 2)
    few = replace(shape, features=-(-shape.features // 2))
    yield f"data.{layout}.feature_columns", f"{shape.features:,} columns", request, few
    if layout == "windows":
        short = replace(shape, time=-(-shape.time // 2))
        yield "data.windows.sequence_length", f"{shape.time:,}", request, short
    name = request.model.WhichOneof("architecture")
    for field, value in getattr(request.model, str(name)).ListFields():
        half = training_pb2.TrainingRequest()
        half.CopyFrom(request)
        setattr(getattr(half.model, str(name)), field.name, -(-value // 2))
        yield f"model.{name}.{field.name}", f"{value:,}", half, shape
