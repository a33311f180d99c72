"""The contract is enforced on the wire: every number of every request, at each of its bounds.

Training requests name a dataset that does not exist: a sound one gets as far as NOT_FOUND, and
nothing is ever trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwire import contract
from trainwire.v1 import (
    dataset_pb2,
    model_pb2,
    options_pb2,
    system_pb2,
    training_pb2,
    training_pb2_grpc,
)

Refusal = Callable[[Callable[[], Any]], Any]

INTEGERS = {
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
}
"""What a field of each type can hold."""
TINY = 5e-324
"""The smallest double above 0."""
MODULES = (training_pb2, dataset_pb2, model_pb2, system_pb2)
COMPANIONS: dict[str, dict[str, float]] = {
    "data.threshold.lower": {"data.threshold.upper": 1000.0},
    "data.threshold.upper": {"data.threshold.lower": -1.0},
    "data.quantile.lower_quantile": {"data.quantile.upper_quantile": 0.9},
    "data.quantile.upper_quantile": {"data.quantile.lower_quantile": 0.1},
    "data.chronological.train_fraction": {"data.chronological.validation_fraction": TINY},
    "data.chronological.validation_fraction": {"data.chronological.train_fraction": TINY},
    "data.stratified.train_fraction": {"data.stratified.validation_fraction": TINY},
    "data.stratified.validation_fraction": {"data.stratified.train_fraction": TINY},
    "model.hybrid_cnn_lstm.pool_size": {"data.windows.sequence_length": 4096},
    "model.linear.pool_size": {"data.windows.sequence_length": 4096},
    "data.windows.sequence_length": {"model.hybrid_cnn_lstm.pool_size": 1},
}
"""Values of the fields that would limit this one, which leave it its whole range."""


# ------------------------------------------------------------------------ what is bounded


@dataclass(frozen=True)
class Number:
    """A number somewhere in a request, and the calls that take the request."""

    path: str
    field: FieldDescriptor
    request: type[Message]
    methods: tuple[MethodDescriptor, ...]

    @property
    def param(self) -> options_pb2.Param:
        return self.field.GetOptions().Extensions[options_pb2.param]

    def __str__(self) -> str:
        return f"{self.request.DESCRIPTOR.name}.{self.path}"

    def bounds(self) -> Iterator[float]:
        for name in ("minimum", "exclusive_minimum", "maximum", "exclusive_maximum"):
            if self.param.HasField(name):
                yield getattr(self.param, name)
        if self.param.maximum_from:
            yield COMPANIONS[self.path][self.param.maximum_from]

    def allows(self, value: float) -> bool:
        """Whether the value is in range, spelled out from the options."""
        p = self.param
        return (
            math.isfinite(value)
            and not (p.HasField("minimum") and value < p.minimum)
            and not (p.HasField("maximum") and value > p.maximum)
            and not (p.HasField("exclusive_minimum") and value <= p.exclusive_minimum)
            and not (p.HasField("exclusive_maximum") and value >= p.exclusive_maximum)
        )

    def can_hold(self, value: float) -> bool:
        low, high = INTEGERS.get(self.field.type, (-math.inf, math.inf))
        return low <= value <= high

    def edges(self) -> list[float]:
        """Each bound and its neighbours on both sides, as far as the type can hold them."""
        found: list[float] = []
        for bound in self.bounds():
            if self.field.type in INTEGERS:
                found += [int(bound) - 1, int(bound), int(bound) + 1]
            else:
                found += [math.nextafter(bound, side) for side in (-math.inf, bound, math.inf)]
        return [value for value in dict.fromkeys(found) if self.can_hold(value)]

    def values(self) -> st.SearchStrategy[float]:
        """Anything the type can hold, most of it near the bounds."""
        if self.field.type not in INTEGERS:
            near: list[st.SearchStrategy[float]] = [
                st.floats(bound - 1e-3, bound + 1e-3) for bound in self.bounds()
            ]
            return st.one_of(*near, st.floats())
        low, high = INTEGERS[self.field.type]
        close: list[st.SearchStrategy[float]] = [
            st.integers(max(int(bound) - 3, low), min(int(bound) + 3, high))
            for bound in self.bounds()
        ]
        return st.one_of(*close, st.integers(low, high))


def methods_by_request() -> dict[str, list[MethodDescriptor]]:
    """The RPCs of the contract, by the message that they take."""
    found: dict[str, list[MethodDescriptor]] = {}
    for module in MODULES:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                found.setdefault(method.input_type.full_name, []).append(method)
    return found


def numbers() -> Iterator[Number]:
    """Every number with a range in every request, from the service descriptors."""
    for methods in methods_by_request().values():
        request = message_factory.GetMessageClass(methods[0].input_type)
        for parameter in contract.describe(request):
            # Below a partial message stand the ranges of another request, which are tried there.
            first = methods[0].input_type.fields_by_name[parameter.path.split(".")[0]]
            number = Number(parameter.path, parameter.field, request, tuple(methods))
            if not contract.is_partial(first) and list(number.bounds()):
                yield number


def has_bounds(descriptor: Descriptor) -> bool:
    """Whether the options of any field of a message bound it, in the words of the options."""
    return any(
        option.name.endswith("imum")
        for field in descriptor.fields
        for option, _ in field.GetOptions().Extensions[options_pb2.param].ListFields()
    )


NUMBERS = list(numbers())
OF_TRAININGS = [n for n in NUMBERS if n.request is training_pb2.TrainingRequest]
OF_OTHERS = [n for n in NUMBERS if n.request is not training_pb2.TrainingRequest]
LIST_CALLS = {"ListTrainings", "ListDatasets", "ListModels"}


def test_every_message_with_a_range_is_reached() -> None:
    """No range of the contract stands where this test does not look."""
    bounded = {
        message.full_name
        for module in MODULES
        for message in module.DESCRIPTOR.message_types_by_name.values()
        if has_bounds(message)
    }
    reached = (number.field.containing_type for number in NUMBERS)
    assert bounded == {message.full_name for message in reached if message is not None}


# ------------------------------------------------------------------------ requests


def between_fields(path: str, value: float) -> tuple[str, str]:
    """Path and limit where a value in range breaks a rule between fields; empty if it does not."""
    if (path, value) in (("data.threshold.lower", 1000.0), ("data.threshold.upper", -1.0)):
        upper = value if path.endswith("upper") else 1000.0
        return "data.threshold.lower", f"less than data.threshold.upper, which is {upper:g}"
    if path.endswith(".pool_size") and value > 4096:
        return path, "at most data.windows.sequence_length, which is 4096"
    return "", ""


def put(message: Message, path: str, value: float) -> None:
    holder: Any = message
    *parents, leaf = path.split(".")
    for name in parents:
        holder = getattr(holder, name)
    setattr(holder, leaf, value)


def training(path: str, value: float) -> training_pb2.TrainingRequest:
    request = training_pb2.TrainingRequest(dataset="datasets/none")
    target = path.split(".")[1] if path.startswith("data.") else ""
    if target in ("threshold", "quantile", "triple_barrier"):
        getattr(request.data, target).price_column = "price"
    else:
        request.data.column.name = "label"
    if path.startswith("data.stratified"):
        request.data.samples.SetInParent()
    if path.startswith("data.split_column"):
        request.data.split_column.name = "part"
    for other, number in COMPANIONS.get(path, {}).items():
        put(request, other, number)
    put(request, path, value)
    return request


def check_training(
    number: Number, value: float, refusal: Refusal, call: Callable[..., Any]
) -> None:
    """What the server must say to this value of this field, and nothing else."""
    request = training(number.path, value)
    refused = refusal(lambda: call(request, timeout=30))
    blamed, limit = between_fields(number.path, value)
    if not number.allows(value):
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert list(refused.fields) == [number.path]
        assert refused.fields[number.path].endswith(f"allowed: {contract.range_text(number.field)}")
    elif blamed:
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert list(refused.fields) == [blamed]
        assert refused.fields[blamed].endswith(f"allowed: {limit}")
    else:
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND"), refused
        assert list(refused.fields) == ["dataset"]


@pytest.fixture(scope="session")
def submit(channel: grpc.Channel) -> Callable[..., Any]:
    return training_pb2_grpc.TrainingServiceStub(channel).SubmitTraining


@pytest.fixture(scope="session")
def train(channel: grpc.Channel) -> Callable[..., Any]:
    return training_pb2_grpc.TrainingServiceStub(channel).Train


def each(found: list[Number]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("number", found, ids=str)


@each(OF_TRAININGS)
def test_each_bound_and_its_neighbours(
    number: Number, submit: Callable[..., Any], train: Callable[..., Any], refusal: Refusal
) -> None:
    """Unary and streaming alike."""
    assert len(number.edges()) >= 2
    assert {number.allows(value) for value in number.edges()} >= {True}
    for value in number.edges():
        check_training(number, value, refusal, submit)
        check_training(number, value, refusal, train)


@each([number for number in OF_TRAININGS if number.field.type not in INTEGERS])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_out_of_range(
    number: Number, value: float, submit: Callable[..., Any], refusal: Refusal
) -> None:
    check_training(number, value, refusal, submit)


@each(OF_TRAININGS)
def test_values_near_the_bounds_and_anywhere(
    number: Number, submit: Callable[..., Any], refusal: Refusal
) -> None:
    @settings(max_examples=10, deadline=None, database=None, derandomize=True)
    @given(number.values())
    def check(value: float) -> None:
        check_training(number, value, refusal, submit)

    check()


# ------------------------------------------------------------------------ the other calls


def call_of(channel: grpc.Channel, method: MethodDescriptor) -> Callable[[Message], Any]:
    """Sends one message to any RPC."""
    described: Any = method
    path = f"/{described.containing_service.full_name}/{described.name}"
    if described.client_streaming:
        upload: Any = channel.stream_unary(path)
        return lambda request: upload(iter([request.SerializeToString()]), timeout=30)
    unary: Any = channel.unary_unary(path)
    return lambda request: unary(request.SerializeToString(), timeout=30)


def other_request(number: Number, value: float) -> Message:
    request = number.request()
    if isinstance(request, dataset_pb2.UploadDatasetRequest):
        request.header.format = dataset_pb2.DATASET_FORMAT_ARROW
        request.header.sha256 = "0" * 64
    put(request, number.path, value)
    return request


@each(OF_OTHERS)
def test_each_bound_of_other_requests(
    number: Number, channel: grpc.Channel, refusal: Refusal
) -> None:
    for method in number.methods:
        call = call_of(channel, method)
        for value in number.edges():
            request = other_request(number, value)
            if not number.allows(value):
                refused = refusal(lambda: call(request))  # noqa: B023 - called at once
                assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
                allowed = f"allowed: {contract.range_text(number.field)}"
                assert list(refused.fields) == [number.path]
                assert refused.fields[number.path].endswith(allowed)
            elif method.name in LIST_CALLS:
                assert isinstance(call(request), bytes)
            else:
                # A sound header, after which no bytes follow.
                refused = refusal(lambda: call(request))  # noqa: B023 - called at once
                assert refused.reason == "BROKEN_UPLOAD"
