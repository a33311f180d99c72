"""The options of the contract make sense: every request field is described, bounded and sound."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor

from trainwire import contract
from trainwire.v1 import dataset_pb2, model_pb2, options_pb2, system_pb2, training_pb2

MODULES: tuple[ModuleType, ...] = (dataset_pb2, model_pb2, system_pb2, training_pb2)
UNBOUNDED = {
    "trainwire.v1.DatasetHeader.size_bytes": "the disk is the limit, and it differs",
    "trainwire.v1.WatchTrainingRequest.after_sequence": "the length of the job's log is the limit",
}
"""Numbers without a largest value, and why."""

FOR_NUMBERS = {"minimum", "maximum", "exclusive_minimum", "exclusive_maximum", "unit"}
FOR_NUMBERS |= {"less_than", "sum_below_one_with", "maximum_from", "default", "default_from"}
FOR_ALL = {"description", "active_when"}
HONOURED = {
    "number": FOR_ALL | FOR_NUMBERS | {"required"},
    "text": FOR_ALL | {"required", "max_length", "pattern", "default", "default_from"},
    "choice": FOR_ALL | {"required", "default", "default_from"},
    "list": FOR_ALL | {"max_length", "pattern", "max_items", "unique_items"},
    "map": FOR_ALL | {"max_length", "max_items"},
    "bytes": {"description"},
    "partial": {"description", "partial"},
}
"""The options that `trainwire.contract` acts on, by kind of field; elsewhere they would be idle."""


def request_messages() -> list[Descriptor]:
    """All messages that a caller sends: the requests and everything below them."""
    found: dict[str, Descriptor] = {}
    todo = [
        message
        for module in MODULES
        for name, message in module.DESCRIPTOR.message_types_by_name.items()
        if name.endswith("Request")
    ]
    while todo:
        message = todo.pop(0)
        if message.full_name not in found:
            found[message.full_name] = message
            todo += [f.message_type for f in message.fields if is_node(f)]
    return list(found.values())


def is_node(field: FieldDescriptor) -> bool:
    """Whether a field has leaves of its own to look at; a partial message's are looked at there."""
    if field.message_type is None or field.message_type.GetOptions().map_entry:
        return False
    return not param(field).partial


def kind(field: FieldDescriptor) -> str:
    """Which of the kinds in `HONOURED` a leaf is."""
    if field.message_type is not None:
        return "partial" if param(field).partial else "map"
    if not field.has_presence and field.type != FieldDescriptor.TYPE_BYTES:
        return "list"
    if field.enum_type is not None or field.type == FieldDescriptor.TYPE_BOOL:
        return "choice"
    special = {FieldDescriptor.TYPE_STRING: "text", FieldDescriptor.TYPE_BYTES: "bytes"}
    return special.get(field.type, "number")


def param(field: FieldDescriptor) -> options_pb2.Param:
    return field.GetOptions().Extensions[options_pb2.param]


MESSAGES = request_messages()
LEAVES = [field for message in MESSAGES for field in message.fields if not is_node(field)]
NUMBERS = [field for field in LEAVES if kind(field) == "number"]
PARAMETERS = contract.describe()


def each(fields: list[FieldDescriptor]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("field", fields, ids=lambda field: field.full_name)


def test_there_is_something_to_look_at() -> None:
    names = {message.name for message in MESSAGES}
    assert {"TrainingRequest", "HybridCnnLstm", "DatasetHeader", "GetModelRequest"} <= names
    assert len(LEAVES) > len(PARAMETERS)
    assert {kind(field) for field in LEAVES} == set(HONOURED)


@each([field for field in LEAVES if kind(field) == "partial"])
def test_a_partial_message_is_a_request_that_is_looked_at_itself(field: FieldDescriptor) -> None:
    assert field.message_type in MESSAGES
    assert param(field).description


# ------------------------------------------------------------------------ every field says enough


@each(LEAVES)
def test_every_field_says_what_it_means(field: FieldDescriptor) -> None:
    text = param(field).description
    assert text.strip() == text
    assert text
    assert not text.endswith(".")


@each(NUMBERS)
def test_every_number_has_bounds_or_a_reason(field: FieldDescriptor) -> None:
    options = param(field)
    unsigned = field.cpp_type in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)
    below = options.HasField("minimum") or options.HasField("exclusive_minimum")
    above = options.HasField("maximum") or options.HasField("exclusive_maximum")
    assert below or unsigned
    assert (above or bool(options.maximum_from)) != (field.full_name in UNBOUNDED)


def test_every_reason_is_for_a_field() -> None:
    assert set(UNBOUNDED) <= {field.full_name for field in NUMBERS}


@each([field for field in LEAVES if kind(field) in ("number", "choice")])
def test_every_number_and_choice_has_a_default_or_is_required(field: FieldDescriptor) -> None:
    options = param(field)
    given = options.HasField("default") or bool(options.default_from)
    assert given != options.required


@each([field for field in LEAVES if kind(field) in ("text", "list", "map")])
def test_text_and_collections_have_an_end(field: FieldDescriptor) -> None:
    options = param(field)
    if field.enum_type is None:
        assert options.HasField("max_length") or options.pattern
    if kind(field) in ("list", "map"):
        assert options.HasField("max_items")


@each(LEAVES)
def test_every_option_is_acted_on(field: FieldDescriptor) -> None:
    given = {option.name for option, _ in param(field).ListFields()}
    assert given <= HONOURED[kind(field)]


# ------------------------------------------------------------------------ defaults


@each([field for field in LEAVES if param(field).HasField("default")])
def test_every_default_is_an_allowed_value_of_the_right_type(field: FieldDescriptor) -> None:
    default = param(field).default
    if field.enum_type is not None:
        assert default.string_value in contract.enum_names(field.enum_type)
    elif field.type == FieldDescriptor.TYPE_BOOL:
        assert default.WhichOneof("kind") == "bool_value"
    elif kind(field) == "number":
        assert default.WhichOneof("kind") == "number_value"
        if field.cpp_type != FieldDescriptor.CPPTYPE_DOUBLE:
            assert default.number_value.is_integer()
        assert in_range(param(field), default.number_value)
    else:
        assert default.WhichOneof("kind") == "string_value"


def in_range(options: options_pb2.Param, value: float) -> bool:
    low = options.minimum if options.HasField("minimum") else -math.inf
    high = options.maximum if options.HasField("maximum") else math.inf
    above = options.exclusive_minimum if options.HasField("exclusive_minimum") else -math.inf
    below = options.exclusive_maximum if options.HasField("exclusive_maximum") else math.inf
    return low <= value <= high and above < value < below


@each(NUMBERS)
def test_every_range_holds_a_value(field: FieldDescriptor) -> None:
    options = param(field)
    assert not (options.HasField("minimum") and options.HasField("exclusive_minimum"))
    assert not (options.HasField("maximum") and options.HasField("exclusive_maximum"))
    low = options.minimum if options.HasField("minimum") else options.exclusive_minimum
    high = options.maximum if options.HasField("maximum") else options.exclusive_maximum
    assert low < (high or math.inf)
    if field.cpp_type != FieldDescriptor.CPPTYPE_DOUBLE:
        assert low.is_integer()
        assert high.is_integer()


@pytest.mark.parametrize("target", ["column", "threshold", "quantile", "triple_barrier"])
def test_the_defaults_together_keep_the_contract(target: str) -> None:
    request = training_pb2.TrainingRequest(dataset="datasets/a")
    field = "name" if target == "column" else "price_column"
    contract.assign(request, f"data.{target}.{field}", "some")
    assert contract.violations(contract.resolve(request)) == []
    assert contract.warnings(request) == []


def oneofs() -> Iterator[OneofDescriptor]:
    for message in MESSAGES:
        yield from (oneof for oneof in message.oneofs if is_node(oneof.fields[0]))


@pytest.mark.parametrize("oneof", list(oneofs()), ids=lambda oneof: oneof.full_name)
def test_every_oneof_is_required_or_has_a_default_member(oneof: OneofDescriptor) -> None:
    options = oneof.GetOptions().Extensions[options_pb2.oneof_param]
    assert options.required != bool(options.default)
    assert not options.default or options.default in [field.name for field in oneof.fields]
    assert all(is_node(field) for field in oneof.fields)


# ------------------------------------------------------------------------ names in options

BY_PATH = {parameter.path: parameter for parameter in PARAMETERS}


def with_option(name: str) -> pytest.MarkDecorator:
    """The parameters of a training that carry an option."""
    carrying = [
        p for p in PARAMETERS if name in [option.name for option, _ in p.param.ListFields()]
    ]
    assert carrying, f"no field has {name}: the tests of it see nothing"
    return pytest.mark.parametrize("parameter", carrying, ids=lambda p: p.path)


def is_always_there(path: str) -> bool:
    """Whether the field has an effective value whatever members of oneofs are chosen."""
    effective: Any = contract.resolve(training_pb2.TrainingRequest())
    *parents, leaf = path.split(".")
    for name in parents:
        if not effective.HasField(name):
            return False
        effective = getattr(effective, name)
    return bool(effective.HasField(leaf))


def oneof_at(path: str) -> OneofDescriptor | None:
    """The oneof at a path that no other oneof decides on."""
    effective: Any = contract.resolve(training_pb2.TrainingRequest())
    *parents, leaf = path.split(".")
    for name in parents:
        effective = getattr(effective, name)
    found: OneofDescriptor | None = effective.DESCRIPTOR.oneofs_by_name.get(leaf)
    return found


def check_condition(condition: options_pb2.Condition) -> None:
    """It names a field that is always there, or a oneof, and one of its values."""
    oneof = oneof_at(condition.field)
    if oneof is not None:
        assert condition.equals in [field.name for field in oneof.fields]
        return
    decider = BY_PATH[condition.field]
    assert kind(decider.field) == "choice"
    assert condition.equals in (decider.enum_values or ("true", "false"))
    assert is_always_there(condition.field)


@with_option("active_when")
def test_conditions_name_a_field_and_one_of_its_values(parameter: contract.Parameter) -> None:
    check_condition(parameter.param.active_when)
    assert parameter.param.active_when.field != parameter.path


@each([field for message in MESSAGES for field in message.fields if is_node(field)])
def test_messages_have_no_option_but_where_they_are_allowed_and_why(field: FieldDescriptor) -> None:
    """And only members of oneofs have that: nothing else can be left out by choice."""
    options = param(field)
    given = {option.name for option, _ in options.ListFields()}
    assert given in (set(), {"description", "allowed_when"})
    if given:
        assert field.containing_oneof is not None
        check_condition(options.allowed_when)


@each([field for field in LEAVES if field.enum_type is not None])
def test_values_have_no_option_but_where_they_are_allowed_and_why(field: FieldDescriptor) -> None:
    """And never the default, which is taken wherever nothing is said."""
    assert field.enum_type is not None
    for value in field.enum_type.values:
        options = value.GetOptions().Extensions[options_pb2.value_param]
        given = {option.name for option, _ in options.ListFields()}
        assert given in (set(), {"description", "allowed_when"})
        if given:
            check_condition(options.allowed_when)
            assert value.name != contract.default_text(field)


@with_option("active_when")
def test_fields_with_defaults_are_active_by_default(parameter: contract.Parameter) -> None:
    oneof = oneof_at(parameter.param.active_when.field)
    if oneof is not None:
        default = oneof.GetOptions().Extensions[options_pb2.oneof_param].default
        assert parameter.param.active_when.equals == default
        return
    decider = BY_PATH[parameter.param.active_when.field]
    if contract.default_text(decider.field) != parameter.param.active_when.equals:
        # The exceptions: what belongs to a switch that is off unless somebody sets it, or to one of
        # several ways that is not the default.
        assert parameter.param.active_when.equals in ("true", *decider.enum_values)


@with_option("default_from")
def test_a_default_from_a_field_fits_into_the_range(parameter: contract.Parameter) -> None:
    source = BY_PATH[parameter.param.default_from]
    assert source.type == parameter.type
    assert source.param.HasField("default")
    assert is_always_there(source.path)
    for bound in (source.param.minimum, source.param.maximum):
        assert in_range(parameter.param, bound)
    assert not parameter.param.HasField("default")


@with_option("maximum_from")
def test_a_maximum_from_a_field_leaves_room_for_the_default(parameter: contract.Parameter) -> None:
    source = BY_PATH[parameter.param.maximum_from]
    assert source.type == parameter.type
    assert is_always_there(source.path)
    assert parameter.param.default.number_value <= source.param.minimum


@pytest.mark.parametrize("option", ["less_than", "sum_below_one_with"])
def test_rules_between_siblings_name_a_sibling(option: str) -> None:
    carrying = [p for p in PARAMETERS if getattr(p.param, option)]
    assert carrying
    for parameter in carrying:
        parent = parameter.path.rpartition(".")[0]
        sibling = BY_PATH[f"{parent}.{getattr(parameter.param, option)}"]
        assert sibling.type == parameter.type
        assert sibling.path != parameter.path


@each(LEAVES)
def test_paths_stand_in_training_requests_alone(field: FieldDescriptor) -> None:
    """They begin at the root of a TrainingRequest, and other messages are not below one."""
    options = param(field)
    paths = (options.default_from, options.maximum_from, options.active_when.field)
    if any(paths):
        assert field in [parameter.field for parameter in PARAMETERS]


@each([field for field in LEAVES if param(field).pattern])
def test_patterns_can_be_read_by_re2_and_python(field: FieldDescriptor) -> None:
    """RE2 knows no look-around and no back-references."""
    pattern = param(field).pattern
    re.compile(pattern)
    assert not re.search(r"\(\?[=!<]|\\\d", pattern)
