"""What `trainwire.contract` makes of the options: for every field, from the descriptor itself."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwire import contract
from trainwire.contract import Parameter
from trainwire.v1 import dataset_pb2, options_pb2, training_pb2

LEAVES = contract.describe()
SIGNED = FieldDescriptor.CPPTYPE_INT32
INTEGERS = {FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64, SIGNED}
REAL = FieldDescriptor.CPPTYPE_DOUBLE
BOOL = FieldDescriptor.CPPTYPE_BOOL
NUMERIC = [p for p in LEAVES if p.field.cpp_type in {*INTEGERS, REAL}]
REALS = [p for p in NUMERIC if p.field.cpp_type == REAL]
UNSIGNED = [p for p in NUMERIC if p.field.cpp_type in INTEGERS - {SIGNED}]
ENUMS = [p for p in LEAVES if p.enum_values]
STRINGS = [p for p in LEAVES if p.type == "string"]
CONDITIONAL = [p for p in LEAVES if p.param.HasField("active_when")]
RELATED = [
    p for p in LEAVES if p.param.less_than or p.param.sum_below_one_with or p.param.maximum_from
]
UNKNOWN_NUMBER = 1007
UNKNOWN_FIELD = b"\xf8\x3e\x01"
"""Field 1007, a varint of 1, as it is on the wire."""


def each(parameters: list[Parameter]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("parameter", parameters, ids=lambda p: p.path)


# ------------------------------------------------------------------------ requests to begin with


def sound(path: str = "") -> training_pb2.TrainingRequest:
    """The smallest request that keeps the contract, with the oneof members that a path needs."""
    request = training_pb2.TrainingRequest(dataset="datasets/a")
    request.data.column.name = "label"
    for member in MEMBERS:
        if member in OTHERS and is_below(path, member):
            choose_member(request, member)
    return request


def choose_member(request: training_pb2.TrainingRequest, path: str) -> None:
    """Choose a member of a oneof, with what it requires below it and elsewhere."""
    holder, leaf = locate(request, path)
    condition = options(holder.DESCRIPTOR.fields_by_name[leaf]).allowed_when
    needed = f"{condition.field.rpartition('.')[0]}.{condition.equals}"
    if needed in OTHERS:
        choose_member(request, needed)
    member = getattr(holder, leaf)
    member.SetInParent()
    for field in member.DESCRIPTOR.fields:
        if options(field).required:
            put(member, field.name, "name")


def is_below(path: str, message: str) -> bool:
    return f"{path}.".startswith(f"{message}.")


def locate(message: Message, path: str) -> tuple[Any, str]:
    """The message that holds the field at a path, and the field's name."""
    *parents, leaf = path.split(".")
    holder: Any = message
    for name in parents:
        holder = getattr(holder, name)
    return holder, leaf


def get(message: Message, path: str) -> Any:
    holder, leaf = locate(message, path)
    return getattr(holder, leaf)


def put(message: Message, path: str, value: Any) -> None:
    holder, leaf = locate(message, path)
    if isinstance(value, dict):
        getattr(holder, leaf).update(value)
    elif isinstance(value, list):
        getattr(holder, leaf)[:] = value
    else:
        setattr(holder, leaf, value)


def with_value(path: str, value: Any) -> training_pb2.TrainingRequest:
    request = sound(path)
    put(request, path, value)
    return request


def fields(message: Message) -> list[str]:
    """Paths of the violations, in the order they are reported."""
    return [violation.field for violation in contract.violations(message)]


def is_set(message: Message, path: str) -> bool:
    holder, leaf = locate(message, path)
    return any(field.name == leaf for field, _ in holder.ListFields())


# ------------------------------------------------------------------------ messages


def message_paths(descriptor: Descriptor, path: str = "") -> list[str]:
    """Paths of all messages below a message, the oneofs' members included, and of itself."""
    nested = [(f.name, f.message_type) for f in descriptor.fields if f.message_type is not None]
    return [
        path,
        *(
            below
            for name, node in nested
            if not node.GetOptions().map_entry
            for below in message_paths(node, f"{path}.{name}".lstrip("."))
        ),
    ]


def is_member(path: str) -> bool:
    holder, leaf = locate(training_pb2.TrainingRequest(), path)
    return holder.DESCRIPTOR.fields_by_name[leaf].containing_oneof is not None


MESSAGES = message_paths(training_pb2.TrainingRequest.DESCRIPTOR)
MEMBERS = [path for path in MESSAGES if path and is_member(path)]


def is_chosen_otherwise(path: str) -> bool:
    """Whether a member stands aside of the default one, or of `data.column`."""
    holder, leaf = locate(contract.resolve(training_pb2.TrainingRequest()), path)
    return not holder.HasField(leaf) and path != "data.column"


OTHERS = [path for path in MEMBERS if is_chosen_otherwise(path)]


def is_apart(path: str) -> bool:
    """Whether a path is below a member that `sound()` does not choose."""
    return any(is_below(path, member) for member in OTHERS)


# ------------------------------------------------------------------------ random requests


def in_range(param: options_pb2.Param, value: float) -> bool:
    """What the options say about a number, spelled out once more."""
    low = param.minimum if param.HasField("minimum") else -math.inf
    high = param.maximum if param.HasField("maximum") else math.inf
    above = param.exclusive_minimum if param.HasField("exclusive_minimum") else -math.inf
    below = param.exclusive_maximum if param.HasField("exclusive_maximum") else math.inf
    return low <= value <= high and above < value < below


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Allowed values of one entry of a field."""
    param = options(field)
    if field.enum_type is not None:
        return st.sampled_from(enum_numbers(field))
    if field.cpp_type == BOOL:
        return st.booleans()
    if field.cpp_type in INTEGERS:
        high = int(param.maximum) if param.HasField("maximum") else 2**32 - 1
        return st.integers(int(param.minimum), high)
    if field.cpp_type == REAL:
        return reals(param)
    if param.pattern:
        return st.from_regex(param.pattern, fullmatch=True).filter(lambda text: len(text) <= 100)
    shortest = 1 if param.required else 0
    return st.text(st.characters(exclude_categories=["Cs"]), min_size=shortest, max_size=12)


def enum_numbers(field: FieldDescriptor) -> list[int]:
    """Numbers of the values, "unspecified" left out."""
    assert field.enum_type is not None
    return [value.number for value in field.enum_type.values if value.number]


def reals(param: options_pb2.Param) -> st.SearchStrategy[float]:
    open_below, open_above = (
        param.HasField("exclusive_minimum"),
        param.HasField("exclusive_maximum"),
    )
    return st.floats(
        param.exclusive_minimum if open_below else param.minimum,
        param.exclusive_maximum if open_above else param.maximum,
        exclude_min=open_below,
        exclude_max=open_above,
    )


def options(field: FieldDescriptor) -> options_pb2.Param:
    return field.GetOptions().Extensions[options_pb2.param]


@st.composite
def requests(draw: st.DrawFn) -> training_pb2.TrainingRequest:
    """Any request that keeps the contract, each optional field set or not."""
    request = training_pb2.TrainingRequest()
    fill(draw, request)
    for member in OTHERS:
        settle(request, member)
    for parameter in ENUMS:
        settle_value(request, parameter)
    for parameter in RELATED:
        for path in broken_relation(request, parameter):
            holder, leaf = locate(request, path)
            holder.ClearField(leaf)
    return request


def settle(request: training_pb2.TrainingRequest, path: str) -> None:
    """Take back a member that another choice does not allow, or that choice."""
    holder, leaf = locate(request, path)
    field = holder.DESCRIPTOR.fields_by_name[leaf]
    condition = options(field).allowed_when
    if not condition.field or not holder.HasField(leaf):
        return
    decider, oneof = locate(contract.resolve(request), condition.field)
    if decider.WhichOneof(oneof) != condition.equals:
        required = field.containing_oneof.GetOptions().Extensions[options_pb2.oneof_param].required
        decider, oneof = locate(request, condition.field)
        (decider if required else holder).ClearField(oneof if required else leaf)


def settle_value(request: training_pb2.TrainingRequest, parameter: Parameter) -> None:
    """Take back a value of an enum that a choice does not allow."""
    effective = contract.resolve(request)
    if not is_chosen(effective, parameter.path):
        return
    assert parameter.field.enum_type is not None
    value = parameter.field.enum_type.values_by_number[get(effective, parameter.path)]
    condition = value.GetOptions().Extensions[options_pb2.value_param].allowed_when
    if not condition.field:
        return
    decider, oneof = locate(effective, condition.field)
    if decider.WhichOneof(oneof) != condition.equals:
        holder, leaf = locate(request, parameter.path)
        holder.ClearField(leaf)


def fill(draw: st.DrawFn, message: Message) -> None:
    descriptor = cast("Descriptor", message.DESCRIPTOR)
    chosen = {member for oneof in written_oneofs(descriptor) for member in choose(draw, oneof)}
    for field in descriptor.fields:
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            fill_leaf(draw, message, field)
        elif field.containing_oneof is None or field.name in chosen:
            if field.name in chosen:
                getattr(message, field.name).SetInParent()
            fill(draw, getattr(message, field.name))


def choose(draw: st.DrawFn, oneof: OneofDescriptor) -> list[str]:
    names = [[field.name] for field in oneof.fields]
    required = oneof.GetOptions().Extensions[options_pb2.oneof_param].required
    return draw(st.sampled_from(names if required else [[], *names]))


def written_oneofs(descriptor: Descriptor) -> list[OneofDescriptor]:
    return [o for o in descriptor.oneofs if o.fields[0].message_type is not None]


def fill_leaf(draw: st.DrawFn, message: Message, field: FieldDescriptor) -> None:
    if not options(field).required and not draw(st.booleans()):
        return
    if field.message_type is not None:
        keys, texts = (st.text("abc.é ", min_size=shortest, max_size=5) for shortest in (1, 0))
        put(message, field.name, draw(st.dictionaries(keys, texts, max_size=3)))
    elif not field.has_presence:
        put(message, field.name, draw(st.lists(values(field), max_size=3, unique=True)))
    else:
        put(message, field.name, draw(values(field)))


def broken_relation(request: training_pb2.TrainingRequest, parameter: Parameter) -> list[str]:
    """The fields of a rule between two fields that the request breaks."""
    effective, param, path = contract.resolve(request), parameter.param, parameter.path
    holder, leaf = locate(effective, path)
    beside = path.removesuffix(leaf)
    if not is_chosen(effective, path):
        return []
    value = getattr(holder, leaf)
    if param.less_than and value >= getattr(holder, param.less_than):
        return [path, beside + param.less_than]
    sibling = param.sum_below_one_with
    if sibling and value + getattr(holder, sibling) >= 1:
        return [path, beside + sibling]
    if not param.maximum_from or not is_chosen(effective, param.maximum_from):
        return []
    return [path] if value > get(effective, param.maximum_from) else []


def is_chosen(message: Message, path: str) -> bool:
    """Whether the members of oneofs above a field are chosen."""
    above = [member for member in MEMBERS if is_below(path, member)]
    return all(locate(message, member)[0].HasField(member.split(".")[-1]) for member in above)


@settings(max_examples=100, deadline=None)
@given(requests())
def test_sound_requests_stay_sound_when_resolved(request: training_pb2.TrainingRequest) -> None:
    assert contract.violations(request) == []
    assert contract.violations(contract.resolve(request)) == []


@settings(max_examples=50, deadline=None)
@given(requests())
def test_resolve_adds_and_changes_nothing_that_was_set(
    request: training_pb2.TrainingRequest,
) -> None:
    before = request.SerializeToString(deterministic=True)
    effective = contract.resolve(request)
    assert request.SerializeToString(deterministic=True) == before
    assert contract.resolve(effective) == effective
    for path in contract.set_fields(request):
        holder, leaf = locate(effective, path)
        assert holder.HasField(leaf) if path in MEMBERS else is_set(effective, path)
        assert path in MEMBERS or get(effective, path) == get(request, path)


@settings(max_examples=50, deadline=None)
@given(requests())
def test_json_round_trip(request: training_pb2.TrainingRequest) -> None:
    for message in (request, contract.resolve(request)):
        plain = json_format.MessageToDict(message, preserving_proto_field_name=True)
        text = json.dumps(plain)
        assert json_format.ParseDict(json.loads(text), training_pb2.TrainingRequest()) == message


@settings(max_examples=50, deadline=None)
@given(requests(), requests())
def test_differences_tell_equal_requests(
    one: training_pb2.TrainingRequest, other: training_pb2.TrainingRequest
) -> None:
    assert contract.differences(one, one) == []
    differing = contract.differences(one, other)
    assert differing == contract.differences(other, one) == sorted(set(differing))
    same_values = all(get(one, path) == get(other, path) for path in contract.set_fields(one))
    same_fields = contract.set_fields(one) == contract.set_fields(other)
    assert bool(differing) != (same_values and same_fields)


# ------------------------------------------------------------------------ ranges


def breaks_range(parameter: Parameter, value: float) -> bool:
    """Whether the value is refused for the field's range (rules between fields aside)."""
    allowed = f"allowed: {contract.range_text(parameter.field)}"
    found = contract.violations(with_value(parameter.path, value))
    return any(v.field == parameter.path and v.description.endswith(allowed) for v in found)


def edges(parameter: Parameter) -> Iterator[tuple[Parameter, float]]:
    """Each bound of a number, and its neighbours on both sides."""
    param = parameter.param
    for name in ("minimum", "maximum", "exclusive_minimum", "exclusive_maximum"):
        if not param.HasField(name):
            continue
        bound = getattr(param, name)
        if parameter.field.cpp_type == REAL:
            around = [math.nextafter(bound, -math.inf), bound, math.nextafter(bound, math.inf)]
        else:
            around = [int(bound) - 1, int(bound), int(bound) + 1]
        yield from ((parameter, v) for v in around if v >= 0 or parameter not in UNSIGNED)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [edge for parameter in NUMERIC for edge in edges(parameter)],
    ids=lambda each: each.path if isinstance(each, Parameter) else repr(each),
)
def test_bounds_are_exact(parameter: Parameter, value: float) -> None:
    assert breaks_range(parameter, value) == (not in_range(parameter.param, value))


@each(NUMERIC)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_values_are_refused_when_out_of_range(parameter: Parameter, data: st.DataObject) -> None:
    anything: st.SearchStrategy[Any] = st.integers(-(2**31), 2**31 - 1)
    if parameter in UNSIGNED:
        anything = st.integers(0, 2**32 - 1)
    elif parameter in REALS:
        anything = st.floats(allow_nan=False, allow_infinity=False)
    value = data.draw(anything | values(parameter.field))
    assert breaks_range(parameter, value) == (not in_range(parameter.param, value))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@each(REALS)
def test_numbers_must_be_finite(parameter: Parameter, value: float) -> None:
    assert fields(with_value(parameter.path, value)) == [parameter.path]


@each(NUMERIC)
def test_every_bound_is_in_the_text_of_the_range(parameter: Parameter) -> None:
    text = contract.range_text(parameter.field)
    marks = {"minimum": "[", "maximum": "]", "exclusive_minimum": "(", "exclusive_maximum": ")"}
    for option, bound in parameter.param.ListFields():
        if mark := marks.get(option.name):
            assert mark in text
            assert str(int(bound) if bound == int(bound) else bound) in text


# ------------------------------------------------------------------------ rules between fields


@pytest.mark.parametrize(
    ("numbers", "broken"),
    [
        ({"data.threshold.lower": 0.1, "data.threshold.upper": 0.2}, []),
        ({"data.threshold.lower": 0.1, "data.threshold.upper": 0.1}, ["data.threshold.lower"]),
        ({"data.threshold.lower": 0.1}, ["data.threshold.lower"]),
        ({"data.threshold.upper": -0.5}, ["data.threshold.lower"]),
        ({"data.threshold.lower": -0.5, "data.threshold.upper": -0.2}, []),
        ({"data.chronological.train_fraction": 0.84}, []),
        ({"data.chronological.train_fraction": 0.85}, ["data.chronological.train_fraction"]),
        ({"data.chronological.validation_fraction": 0.4}, ["data.chronological.train_fraction"]),
        ({"data.stratified.train_fraction": 0.84}, []),
        ({"data.stratified.train_fraction": 0.85}, ["data.stratified.train_fraction"]),
        ({"data.stratified.validation_fraction": 0.4}, ["data.stratified.train_fraction"]),
        (
            {
                "data.chronological.train_fraction": 0.5,
                "data.chronological.validation_fraction": 0.49,
            },
            [],
        ),
        ({"model.hybrid_cnn_lstm.pool_size": 60}, []),
        ({"model.hybrid_cnn_lstm.pool_size": 61}, ["model.hybrid_cnn_lstm.pool_size"]),
        ({"data.windows.sequence_length": 2, "model.hybrid_cnn_lstm.pool_size": 2}, []),
        (
            {"data.windows.sequence_length": 2, "model.hybrid_cnn_lstm.pool_size": 3},
            ["model.hybrid_cnn_lstm.pool_size"],
        ),
    ],
)
def test_rules_between_fields_hold_for_effective_values(
    numbers: dict[str, float], broken: list[str]
) -> None:
    request = sound(next(iter(numbers)))
    for path, value in numbers.items():
        put(request, path, value)
    assert fields(request) == broken


CONDITIONAL_MEMBERS = {
    ("data.threshold", "data.samples"): "data.layout is samples; allowed: with windows",
    ("data.stratified", "data.windows"): "data.layout is windows; allowed: with samples",
    ("data.stratified", ""): "data.layout is windows; allowed: with samples",
}


@pytest.mark.parametrize(("member", "other"), CONDITIONAL_MEMBERS)
def test_a_member_is_refused_where_another_choice_does_not_allow_it(
    member: str, other: str
) -> None:
    request = sound(member)
    assert fields(request) == []
    request.data.ClearField("windows")
    request.data.ClearField("samples")
    if other:
        contract.assign(request, other, "")
    (found,) = contract.violations(request)
    assert found.field == member
    assert CONDITIONAL_MEMBERS[member, other] in found.description


def test_a_value_is_refused_where_another_choice_does_not_allow_it() -> None:
    request = sound()
    contract.assign(request, "data.scaling", "ROLLING")
    assert fields(request) == []
    request.data.samples.SetInParent()
    (found,) = contract.violations(request)
    assert found.field == "data.scaling"
    assert found.description.startswith(
        "SCALING_ROLLING is not allowed while data.layout is samples; allowed: with windows"
    )


@pytest.mark.parametrize("length", [2, 61])
def test_a_maximum_from_a_field_that_is_not_there_is_none(length: int) -> None:
    """Whoever knows the length of the series holds the field against it: `bounded_by`."""
    request = sound("data.samples")
    request.model.hybrid_cnn_lstm.pool_size = length
    assert fields(request) == []
    source = "data.windows.sequence_length"
    assert contract.bounded_by(request, source) == [("model.hybrid_cnn_lstm.pool_size", length)]


def test_bounds_of_members_that_were_not_chosen_are_left_out() -> None:
    effective = contract.resolve(sound("model.mini_rocket"))
    assert contract.bounded_by(effective, "data.windows.sequence_length") == []


def test_a_broken_rule_names_the_other_field_and_its_value() -> None:
    (found,) = contract.violations(with_value("data.chronological.validation_fraction", 0.3))
    assert found.field == "data.chronological.train_fraction"
    assert "data.chronological.validation_fraction, which is 0.3" in found.description


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.threshold.upper", math.nan),
        ("data.threshold.upper", -2.0),
        ("data.chronological.validation_fraction", 1.5),
        ("data.windows.sequence_length", 0),
    ],
)
def test_a_value_out_of_range_is_blamed_alone(path: str, value: float) -> None:
    """Not the fields that it would limit, which may hold their defaults."""
    assert fields(with_value(path, value)) == [path]


# ------------------------------------------------------------------------ required


def test_what_is_required() -> None:
    assert fields(training_pb2.TrainingRequest()) == ["dataset", "data.target"]
    empty = training_pb2.TrainingRequest(dataset="")
    empty.data.column.SetInParent()
    assert fields(empty) == ["dataset", "data.column.name"]
    empty.data.threshold.SetInParent()
    assert fields(empty) == ["dataset", "data.threshold.price_column"]
    assert fields(sound()) == []


@each([p for p in LEAVES if p.param.required])
def test_required_fields_must_be_there_and_not_empty(parameter: Parameter) -> None:
    request = with_value(parameter.path, "")
    assert fields(request) == [parameter.path]
    holder, leaf = locate(request, parameter.path)
    holder.ClearField(leaf)
    if request.data.WhichOneof("target") is not None:
        assert fields(request) == [parameter.path]
    (found,) = contract.violations(request)
    assert found.description.startswith("required")


def test_a_required_oneof_names_its_members() -> None:
    (found,) = contract.violations(dataset_pb2.UploadDatasetRequest())
    assert str(found) == "payload: required: set one of header, chunk"
    header = dataset_pb2.UploadDatasetRequest(header=dataset_pb2.DatasetHeader())
    assert fields(header) == ["header.format", "header.size_bytes", "header.sha256"]
    header.header.format = dataset_pb2.DATASET_FORMAT_ARROW
    header.header.size_bytes, header.header.sha256 = 1, "a" * 64
    assert fields(header) == []


# ------------------------------------------------------------------------ unknown things


def with_unknown_field(message: training_pb2.TrainingRequest, path: str) -> str:
    """Append a field of a number that does not exist to a nested message; the path it will have."""
    holder = get(message, path) if path else message
    holder.MergeFromString(UNKNOWN_FIELD)
    if path:
        # What came over the wire: nothing was set, but the message is there.
        holder.SetInParent()
    return f"{path}.{UNKNOWN_NUMBER}".lstrip(".")


@pytest.mark.parametrize("path", MESSAGES)
def test_unknown_fields_are_refused_at_every_depth(path: str) -> None:
    request = sound(path)
    expected = with_unknown_field(request, path)
    received = training_pb2.TrainingRequest.FromString(request.SerializeToString())
    (found,) = contract.violations(received)
    assert found.field == expected
    assert f"unknown field number {UNKNOWN_NUMBER}" in found.description


@pytest.mark.parametrize("number", [0, 99, -1])
@each(ENUMS)
def test_unknown_enum_values_are_refused(parameter: Parameter, number: int) -> None:
    (found,) = contract.violations(with_value(parameter.path, number))
    assert found.field == parameter.path
    assert all(name in found.description for name in parameter.enum_values)
    # "Unspecified" is in every contract.
    assert ("the server is older" in found.description) == (number != 0)


def test_everything_wrong_is_reported_at_once() -> None:
    request = sound()
    unknown = [with_unknown_field(request, path) for path in MESSAGES if not is_apart(path)]
    for parameter in ENUMS:
        put(request, parameter.path, 99)
    bounded = [p for p in NUMERIC if p.param.HasField("maximum") and not is_apart(p.path)]
    for parameter in bounded:
        put(request, parameter.path, int(parameter.param.maximum) + 1)
    expected = [*unknown, *(p.path for p in ENUMS), *(p.path for p in bounded)]
    request.display_name = "x" * 201
    received = training_pb2.TrainingRequest.FromString(request.SerializeToString())
    assert sorted(fields(received)) == sorted([*expected, "display_name"])


def test_an_unknown_field_sent_twice_is_reported_once() -> None:
    request = sound()
    request.trainer.MergeFromString(2 * UNKNOWN_FIELD)
    assert fields(request) == [f"trainer.{UNKNOWN_NUMBER}"]


@pytest.mark.parametrize(
    ("path", "wire"),
    [
        ("trainer.epochs", b"\x3a\x09\x09" + bytes(8)),
        ("labels", b"\x1a\x09\x0a\x01k\x12\x01v\xc8\x01\x01"),
    ],
    ids=["as 64 bits, not a varint", "an entry with a third field"],
)
def test_known_fields_that_cannot_be_read_are_refused(path: str, wire: bytes) -> None:
    """protobuf keeps both among the unknown fields, though their numbers are known."""
    request = training_pb2.TrainingRequest.FromString(sound().SerializeToString() + wire)
    (found,) = contract.violations(request)
    assert found.field == path
    assert "cannot be read" in found.description


# ------------------------------------------------------------------------ partial messages


def changing(path: str = "", text: str = "") -> training_pb2.ResumeTrainingRequest:
    """A request whose `changes`, a partial message, has this one field set."""
    request = training_pb2.ResumeTrainingRequest(name="jobs/a")
    request.changes.SetInParent()
    if path:
        contract.assign(request, f"changes.{path}", text)
    return request


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("", ""),
        ("trainer.epochs", "300"),
        ("display_name", "again"),
        # Beside these a whole request would need more: the other column, the price.
        ("data.windows.time_column", "t"),
        ("data.threshold.horizon", "3"),
    ],
)
def test_nothing_is_required_in_a_partial_message(path: str, text: str) -> None:
    assert contract.violations(changing(path, text)) == []


def test_what_holds_a_partial_message_is_whole() -> None:
    nameless = training_pb2.ResumeTrainingRequest()
    assert [v.field for v in contract.violations(nameless)] == ["name"]


@pytest.mark.parametrize(
    ("path", "text", "allowed"),
    [
        ("trainer.epochs", "0", "0 is not allowed; allowed: [1, 100000]"),
        ("dataset", "d", "'d' is not allowed; allowed: datasets/"),
        ("trainer.scheduler_type", "UNSPECIFIED", "SCHEDULER_TYPE_UNSPECIFIED is not a value of"),
        ("display_name", 201 * "x", "201 characters; allowed: at most 200"),
    ],
)
def test_values_in_a_partial_message_keep_the_contract(path: str, text: str, allowed: str) -> None:
    (violation,) = contract.violations(changing(path, text))
    assert violation.field == f"changes.{path}"
    assert violation.description.startswith(allowed)


@pytest.mark.parametrize("path", ["", "trainer", "model.hybrid_cnn_lstm"])
def test_unknown_fields_in_a_partial_message_are_refused(path: str) -> None:
    request = changing()
    holder: Any = request.changes
    for name in path.split(".") if path else ():
        holder = getattr(holder, name)
    holder.MergeFromString(UNKNOWN_FIELD)
    holder.SetInParent()
    where = f"changes.{path}.{UNKNOWN_NUMBER}".replace("..", ".")
    assert [v.field for v in contract.violations(request)] == [where]


def test_unknown_enum_values_in_a_partial_message_are_refused() -> None:
    request = changing()
    request.changes.trainer.scheduler_type = cast("Any", UNKNOWN_NUMBER)
    assert [v.field for v in contract.violations(request)] == ["changes.trainer.scheduler_type"]


def test_resolve_leaves_a_partial_message_as_it_is() -> None:
    for request in (
        training_pb2.ResumeTrainingRequest(name="jobs/a"),
        changing(),
        changing("trainer.epochs", "7"),
    ):
        assert contract.resolve(request) == request


def test_rules_between_fields_are_left_to_what_a_partial_message_is_laid_over() -> None:
    # By itself more than is left of 1 beside the default share of validation windows.
    request = changing("data.chronological.train_fraction", "0.9")
    assert contract.violations(request) == []
    whole = sound()
    whole.data.chronological.train_fraction = 0.9
    assert [v.field for v in contract.violations(whole)] == [
        "data.chronological.train_fraction",
    ]


# ------------------------------------------------------------------------ versions


@pytest.mark.parametrize(
    ("mine", "theirs", "is_theirs"),
    [
        ("0.1.0", "0.1.0", "same"),
        ("0.1.0", "0.1.1", "newer"),
        ("0.1.0", "0.0.9", "older"),
        ("0.9.0", "0.10.0", "newer"),
        ("0.10.0", "0.9.9", "older"),
        ("1.0.0", "0.99.99", "older"),
    ],
)
def test_versions_are_compared_as_numbers(mine: str, theirs: str, is_theirs: str) -> None:
    assert contract.compare_versions(mine, theirs) == is_theirs


@pytest.mark.parametrize("text", ["", "1", "1.0", "1.0.0-rc1", "v1.0.0", "1.0.0\n", "1.-1.0"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"MAJOR\.MINOR\.PATCH"):
        contract.compare_versions("0.1.0", text)


def test_what_is_in_this_contract_is_not_beyond_it() -> None:
    assert contract.beyond(contract.resolve(sound())) == []


# ------------------------------------------------------------------------ text, lists, maps


@each([p for p in STRINGS if p.param.HasField("max_length") and not p.repeated])
def test_text_may_be_as_long_as_allowed(parameter: Parameter) -> None:
    """In characters, not bytes."""
    limit = parameter.param.max_length
    letter = "a" if parameter.param.pattern else "é"
    assert fields(with_value(parameter.path, limit * letter)) == []
    (found,) = contract.violations(with_value(parameter.path, (limit + 1) * letter))
    assert found.field == parameter.path
    assert str(limit) in found.description


@pytest.mark.parametrize(
    ("path", "good", "bad"),
    [
        ("request_id", "Az09._:-", ["", " ", "a b", "a\n", "\na", "é", "a/b"]),
        ("dataset", "datasets/sha256-0aZ_.", ["datasets/", "datasets", "models/a", "datasets/a/b"]),
        ("dataset", "datasets/a", ["datasets/a\n", " datasets/a", "DATASETS/a"]),
    ],
)
def test_patterns_match_the_whole_text(path: str, good: str, bad: list[str]) -> None:
    assert fields(with_value(path, good)) == []
    for text in bad:
        (found,) = contract.violations(with_value(path, text))
        assert found.field == path


def test_lists_have_a_length_and_no_doubles() -> None:
    path = "data.windows.feature_columns"
    names = [str(number) for number in range(10_000)]
    assert fields(with_value(path, names)) == []
    assert fields(with_value(path, [*names, "more"])) == [path]
    assert fields(with_value(path, ["a", "b", "a", "c", "a"])) == [f"{path}[2]", f"{path}[4]"]
    assert fields(with_value(path, ["a" * 256, "b" * 257])) == [f"{path}[1]"]


def test_maps_have_a_size_and_lengths() -> None:
    full = {str(number): "v" for number in range(64)}
    assert fields(with_value("labels", full)) == []
    assert fields(with_value("labels", {**full, "more": "v"})) == ["labels"]
    assert fields(with_value("labels", {"k" * 128: "é" * 128})) == []
    assert fields(with_value("labels", {"k": "v" * 129})) == ["labels.k"]
    (found,) = contract.violations(with_value("labels", {"k" * 129: "v"}))
    assert found.field.startswith("labels.kkk")
    (found,) = contract.violations(with_value("labels", {"": "v", "k": ""}))
    assert found == contract.Violation("labels", "a key is set but empty; leave it out")


@pytest.mark.parametrize("name", ["time_column", "group_column"])
def test_a_column_name_that_is_set_but_empty_is_refused(name: str) -> None:
    path = f"data.windows.{name}"
    (found,) = contract.violations(with_value(path, ""))
    assert found == contract.Violation(path, "is set but empty; leave it out")
    assert fields(with_value(path, "\n two\nlines ")) == []


def test_an_empty_name_among_the_features_is_refused() -> None:
    path = "data.windows.feature_columns"
    (found,) = contract.violations(with_value(path, ["a", ""]))
    assert found == contract.Violation(f"{path}[1]", "is set but empty; leave it out")


def test_what_may_be_empty() -> None:
    assert fields(with_value("display_name", "")) == []
    assert contract.violations(training_pb2.ListTrainingsRequest(page_token="")) == []


# ------------------------------------------------------------------------ resolve


@each([p for p in LEAVES if p.param.HasField("default") or p.param.default_from])
def test_resolve_sets_every_field_that_has_a_default(parameter: Parameter) -> None:
    effective = contract.resolve(sound(parameter.path))
    assert is_set(effective, parameter.path)
    param, value = parameter.param, get(effective, parameter.path)
    if param.default_from:
        assert value == get(effective, param.default_from)
    elif parameter.enum_values:
        assert contract.value_text(parameter.field, value) == param.default.string_value
    else:
        assert value == getattr(param.default, str(param.default.WhichOneof("kind")))


def test_resolve_follows_the_effective_value_of_another_field() -> None:
    effective = contract.resolve(with_value("data.windows.sequence_length", 17))
    assert effective.data.chronological.embargo_rows == 17


def test_labelled_series_have_no_embargo_by_default_and_no_fields_of_windows() -> None:
    effective = contract.resolve(sound("data.samples"))
    assert effective.data.chronological.HasField("embargo_rows")
    assert effective.data.chronological.embargo_rows == 0
    assert effective.data.WhichOneof("layout") == "samples"
    text = contract.canonical_json(sound("data.samples"))
    assert '"samples":{}' in text
    assert "windows" not in text
    assert contract.set_fields(sound("data.samples")) == [
        "dataset",
        "data.samples",
        "data.column.name",
    ]


def test_resolve_takes_default_members_and_makes_no_choice_for_the_caller() -> None:
    effective = contract.resolve(training_pb2.TrainingRequest())
    assert effective.data.WhichOneof("layout") == "windows"
    assert effective.data.WhichOneof("split") == "chronological"
    assert effective.model.WhichOneof("architecture") == "hybrid_cnn_lstm"
    assert effective.data.WhichOneof("target") is None
    assert not effective.HasField("dataset")
    assert not effective.data.windows.HasField("time_column")


@each([p for p in LEAVES if p.field.has_presence])
def test_resolve_keeps_zero_false_and_empty(parameter: Parameter) -> None:
    zero: Any = parameter.field.default_value
    effective = contract.resolve(with_value(parameter.path, zero))
    assert is_set(effective, parameter.path)
    assert get(effective, parameter.path) == zero


def test_resolve_does_not_choose_members_for_a_message_of_another_kind() -> None:
    page = contract.resolve(dataset_pb2.ListDatasetsRequest())
    assert page.page_size == 100
    assert not page.HasField("page_token")


INHERITED = {
    "trainer.epochs": 150,
    "trainer.batch_size": 256,
    "trainer.learning_rate": 5e-5,
    "trainer.weight_decay": 0.01,
    "trainer.early_stopping_patience": 20,
    "trainer.scheduler_type": training_pb2.SCHEDULER_TYPE_COSINE_WARM_RESTARTS,
    "trainer.scheduler_t_0": 10,
    "trainer.scheduler_t_mult": 2,
    "model.dropout": 0.4,
    "trainer.label_smoothing": 0.1,
    "trainer.use_augmentation": True,
    "trainer.gaussian_noise_std": 0.01,
    "balancing.use_focal_loss": True,
    "balancing.focal_gamma": 2.5,
    "balancing.use_oversampling": True,
    "balancing.oversample_ratio": 0.5,
}
"""The names of the replaced API, whose defaults callers count on."""


@pytest.mark.parametrize("path", INHERITED)
def test_inherited_defaults(path: str) -> None:
    assert get(contract.resolve(sound()), path) == INHERITED[path]


# ------------------------------------------------------------------------ what was set


@each(LEAVES)
def test_set_fields_lists_what_was_set(parameter: Parameter) -> None:
    request = sound(parameter.path)
    # A chosen member counts as long as it is empty.
    before = [path for path in contract.set_fields(request) if not is_below(parameter.path, path)]
    put(request, parameter.path, another(parameter, request))
    assert set(contract.set_fields(request)) == {*before, parameter.path}


def another(parameter: Parameter, request: training_pb2.TrainingRequest) -> Any:
    """An allowed value of the field that differs from its effective one."""
    field, current = parameter.field, get(contract.resolve(request), parameter.path)
    if field.message_type is not None:
        return {"team": "a"}
    if parameter.repeated:
        return ["a"]
    if parameter.enum_values:
        return next(number for number in enum_numbers(field) if number != current)
    if field.cpp_type == BOOL:
        return not current
    if field.cpp_type in INTEGERS:
        return current + 1
    return (current * 0.99 or 0.01) if field.cpp_type == REAL else f"{current or 'a'}2"


def test_set_fields_are_in_order_and_name_chosen_members() -> None:
    request = sound()
    request.model.hybrid_cnn_lstm.SetInParent()
    request.trainer.SetInParent()
    request.data.windows.feature_columns[:] = ["a"]
    assert contract.set_fields(request) == [
        "dataset",
        "data.windows.feature_columns",
        "data.column.name",
        "model.hybrid_cnn_lstm",
    ]
    assert contract.set_fields(training_pb2.TrainingRequest()) == []


@each(CONDITIONAL)
def test_a_field_without_effect_is_warned_of(parameter: Parameter) -> None:
    condition = parameter.param.active_when
    for path, text, value in decisions(condition.field):
        request = sound()
        contract.assign(request, path, text)
        assert contract.warnings(request) == []
        put(request, parameter.path, another(parameter, request))
        found = contract.warnings(request)
        if value == condition.equals:
            assert found == []
        else:
            assert [warning.field for warning in found] == [parameter.path]
            assert f"{condition.field} is {value}" in found[0].description
        assert contract.violations(request) == []


def decisions(path: str) -> list[tuple[str, str, str]]:
    """How to set the field or oneof at a path to each of its values: path, text, and the value."""
    decider = next((p for p in LEAVES if p.path == path), None)
    if decider is not None:
        return [(path, value, value) for value in decider.enum_values or ("true", "false")]
    holder, name = locate(training_pb2.TrainingRequest(), path)
    members = [field.name for field in holder.DESCRIPTOR.oneofs_by_name[name].fields]
    return [(path.removesuffix(name) + member, "", member) for member in members]


def test_a_field_without_effect_takes_those_with_it_that_it_decides() -> None:
    request = sound()
    request.balancing.oversample_method = training_pb2.OVERSAMPLE_METHOD_SMOTE
    request.balancing.smote_k_neighbors = 3
    assert contract.warnings(request) == []
    request.balancing.use_oversampling = False
    found = {warning.field: warning.description for warning in contract.warnings(request)}
    reason = "set, but without effect while balancing.use_oversampling is false, not true"
    fields = ["balancing.oversample_method", "balancing.smote_k_neighbors"]
    assert found == dict.fromkeys(fields, reason)


def test_all_fields_without_effect_are_warned_of_at_once() -> None:
    request = sound()
    request.data.samples.SetInParent()
    request.trainer.scheduler_type = training_pb2.SCHEDULER_TYPE_CONSTANT
    request.trainer.use_augmentation = False
    request.balancing.use_focal_loss = False
    request.balancing.use_class_weights = False
    request.balancing.use_oversampling = False
    for parameter in CONDITIONAL:
        put(request, parameter.path, get(contract.resolve(request), parameter.path))
    assert [w.field for w in contract.warnings(request)] == [p.path for p in CONDITIONAL]


@each(LEAVES)
def test_differences_name_the_leaf(parameter: Parameter) -> None:
    one, other = sound(parameter.path), sound(parameter.path)
    put(other, parameter.path, another(parameter, one))
    assert contract.differences(one, other) == [parameter.path]
    assert contract.differences(other, one) == [parameter.path]


def test_differences_of_another_member_name_both() -> None:
    differing = contract.differences(sound("data.column"), sound("data.threshold"))
    assert differing == ["data.column.name", "data.threshold.price_column"]


def test_an_empty_message_differs_from_none_only_where_it_is_a_choice() -> None:
    one, other = sound(), sound()
    other.trainer.SetInParent()
    assert contract.differences(one, other) == []
    other.model.hybrid_cnn_lstm.SetInParent()
    assert contract.differences(one, other) == ["model.hybrid_cnn_lstm"]


# ------------------------------------------------------------------------ digests


@each(LEAVES)
def test_the_digest_changes_with_what_is_trained(parameter: Parameter) -> None:
    one, other = sound(parameter.path), sound(parameter.path)
    put(other, parameter.path, another(parameter, one))
    equal = contract.request_digest(one) == contract.request_digest(other)
    free = ("request_id", "display_name", "labels", "validate_only")
    assert equal == (parameter.path in free)


@settings(max_examples=30, deadline=None)
@given(requests())
def test_the_digest_is_that_of_the_effective_request(
    request: training_pb2.TrainingRequest,
) -> None:
    text = contract.canonical_json(request)
    effective = contract.resolve(request)
    assert contract.canonical_json(effective) == text
    assert len(contract.request_digest(request)) == 64
    assert contract.request_digest(effective) == contract.request_digest(request)
    read = json_format.Parse(text, training_pb2.TrainingRequest())
    assert contract.canonical_json(read) == text
    for name in contract.NOT_DIGESTED:
        effective.ClearField(name)  # type: ignore[arg-type] # any of the literals
    assert read == effective


def test_canonical_json_has_sorted_keys_and_no_spaces() -> None:
    text = contract.canonical_json(sound())
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert '"chronological":{"embargo_rows":60,"train_fraction":0.7' in text


def test_version_and_digest_of_the_contract() -> None:
    major, minor, patch = contract.contract_version().split(".")
    assert (major + minor + patch).isdigit()
    assert len(contract.contract_digest()) == 64
    assert contract.contract_digest() == contract.contract_digest()


# ------------------------------------------------------------------------ assign


def as_texts(request: training_pb2.TrainingRequest) -> Iterator[tuple[str, str]]:
    """What a command line would have to set to make the request."""
    leaves = {parameter.path: parameter for parameter in LEAVES}
    for path in contract.set_fields(request):
        parameter, value = leaves.get(path), get(request, path)
        if parameter is None:
            yield path, ""
        elif parameter.path == "labels":
            yield from ((f"labels.{key}", text) for key, text in value.items())
        elif parameter.repeated:
            yield path, ",".join(value)
        else:
            yield path, contract.value_text(parameter.field, value)


@settings(max_examples=50, deadline=None)
@given(requests())
def test_every_request_can_be_set_from_text(request: training_pb2.TrainingRequest) -> None:
    names = request.data.windows.feature_columns
    names[:] = [f"column {index}" for index in range(len(names))]
    built = training_pb2.TrainingRequest()
    for path, text in as_texts(request):
        contract.assign(built, path, text)
    assert contract.differences(built, request) == []


@each(ENUMS)
def test_enum_values_may_be_short_and_in_any_case(parameter: Parameter) -> None:
    assert parameter.field.enum_type is not None
    prefix = parameter.field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
    for name in parameter.enum_values:
        for text in (name, name.lower(), name.removeprefix(prefix), name.lower()[len(prefix) :]):
            request = sound()
            contract.assign(request, parameter.path, text)
            assert contract.value_text(parameter.field, get(request, parameter.path)) == name


@each([p for p in LEAVES if p.field.cpp_type == BOOL])
def test_bools_are_true_and_false(parameter: Parameter) -> None:
    for text, value in (("true", True), ("True", True), ("FALSE", False), ("false", False)):
        request = sound()
        contract.assign(request, parameter.path, text)
        assert get(request, parameter.path) is value
        assert is_set(request, parameter.path)


@each([p for p in LEAVES if p.type not in ("string", "map<string, string>")])
def test_bad_text_is_refused_with_path_and_what_is_allowed(parameter: Parameter) -> None:
    words = list(parameter.enum_values) or [contract.range_text(parameter.field)]
    if parameter.field.cpp_type == BOOL:
        words = ["true, false"]
    bad = ["", "maybe", "NOT_A_VALUE", "1e", "--1"]
    if parameter.field.cpp_type in INTEGERS:
        bad += ["1.5", "nan", str(2**32), "-1" if parameter in UNSIGNED else str(-(2**31) - 1)]
    for text in bad:
        request = sound(parameter.path)
        with pytest.raises(contract.ContractError) as error:
            contract.assign(request, parameter.path, text)
        (found,) = error.value.violations
        assert found.field == parameter.path
        assert repr(text) in found.description
        assert all(word in found.description for word in words)
        assert request == sound(parameter.path)


@each(NUMERIC)
def test_numbers_are_written_in_ascii_digits_alone(parameter: Parameter) -> None:
    for text in ("1_0", "1 ", " 1", "1\n", "\u0661", "\uff11", "\u0661.5"):
        with pytest.raises(contract.ContractError) as error:
            contract.assign(sound(parameter.path), parameter.path, text)
        (found,) = error.value.violations
        assert repr(text) in found.description
        assert contract.range_text(parameter.field) in found.description


def test_lists_and_maps_from_text() -> None:
    request = sound()
    contract.assign(request, "data.windows.feature_columns", "a, b c ,d,")
    assert list(request.data.windows.feature_columns) == ["a", "b c", "d"]
    contract.assign(request, "data.windows.feature_columns", "")
    assert list(request.data.windows.feature_columns) == []
    contract.assign(request, "labels.team", "red")
    contract.assign(request, "labels.a.dotted.key", "x=1,2")
    assert dict(request.labels) == {"team": "red", "a.dotted.key": "x=1,2"}


def test_setting_a_member_replaces_the_one_before() -> None:
    request = sound()
    contract.assign(request, "data.threshold.price_column", "price")
    assert request.data.WhichOneof("target") == "threshold"
    contract.assign(request, "data.column", "")
    assert request.data.WhichOneof("target") == "column"
    assert contract.set_fields(request) == ["dataset", "data.column"]


@pytest.mark.parametrize(
    ("path", "text", "blamed", "words"),
    [
        ("nonsense", "1", "nonsense", ["no such field", "request_id", "trainer"]),
        ("trainer.nonsense", "1", "trainer.nonsense", ["no such field", "epochs, batch_size"]),
        ("nonsense.epochs", "1", "nonsense", ["no such field"]),
        ("", "1", "", ["no such field"]),
        ("trainer.", "1", "trainer.", ["no such field"]),
        ("epochs", "1", "epochs", ["did you mean trainer.epochs?"]),
        ("trainer.dropout", "1", "trainer.dropout", ["did you mean model.dropout?"]),
        (
            "horizon",
            "1",
            "horizon",
            ["did you mean data.column.horizon", "data.triple_barrier.horizon?"],
        ),
        ("trainer", "1", "trainer", ["is a message"]),
        ("labels", "a", "labels", ["labels.KEY"]),
        ("trainer.epochs.more", "1", "trainer.epochs.more", ["no fields of its own"]),
        ("display_name", "\udcff", "display_name", ["is not allowed"]),
        ("labels.team", "\udcff", "labels.team", ["is not allowed"]),
    ],
)
def test_what_cannot_be_set_is_explained(
    path: str, text: str, blamed: str, words: list[str]
) -> None:
    request = sound()
    with pytest.raises(contract.ContractError) as error:
        contract.assign(request, path, text)
    (found,) = error.value.violations
    assert found.field == blamed
    assert all(word in found.description for word in words)
    assert request == sound()


def test_what_the_contract_forbids_is_left_to_violations() -> None:
    request = sound()
    contract.assign(request, "trainer.epochs", "0")
    contract.assign(request, "trainer.learning_rate", "nan")
    assert fields(request) == ["trainer.epochs", "trainer.learning_rate"]


# ------------------------------------------------------------------------ describe


def test_describe_lists_leaves_in_the_order_of_the_file() -> None:
    paths = [parameter.path for parameter in LEAVES]
    assert len(set(paths)) == len(paths)
    assert paths[:4] == ["request_id", "display_name", "labels", "dataset"]
    for message in ("trainer", "balancing", "model.hybrid_cnn_lstm"):
        numbers = [p.field.number for p in LEAVES if p.path.rpartition(".")[0] == message]
        assert all(one < other for one, other in pairwise(numbers))


def test_describe_names_types_and_oneofs() -> None:
    by_path = {parameter.path: parameter for parameter in LEAVES}
    features = by_path["data.windows.feature_columns"]
    assert (features.type, features.repeated, features.oneof) == ("string", True, "layout")
    labels = by_path["labels"]
    assert (labels.type, labels.repeated, labels.oneof) == ("map<string, string>", False, "")
    assert by_path["data.column.name"].oneof == "target"
    assert by_path["trainer.precision"].type == "Precision"
    assert by_path["trainer.epochs"].type == "uint32"


@pytest.mark.parametrize(
    ("path", "default", "allowed"),
    [
        ("trainer.learning_rate", "5e-05", "(0, 1)"),
        ("trainer.epochs", "150", "[1, 100000]"),
        ("trainer.early_stopping_patience", "20", "[0, 10000]"),
        ("trainer.gradient_clip_norm", "1", "[0, 1000]"),
        ("trainer.use_augmentation", "true", ""),
        ("trainer.precision", "PRECISION_AUTO", ""),
        ("balancing.oversample_ratio", "0.5", "(0, 1]"),
        ("data.threshold.lower", "-0.001", "[-1, 1000]"),
        (
            "data.chronological.embargo_rows",
            "value of data.windows.sequence_length",
            "[0, 1000000]",
        ),
        ("dataset", "", ""),
    ],
)
def test_defaults_and_ranges_as_text(path: str, default: str, allowed: str) -> None:
    field = next(parameter.field for parameter in LEAVES if parameter.path == path)
    assert contract.default_text(field) == default
    assert contract.range_text(field) == allowed
