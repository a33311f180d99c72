"""Reads what the contract says about itself: defaults, ranges, units, meaning.

The field options in ``trainwire/v1/*.proto`` are the only place where a default or a range stands.
This module turns them into behaviour, for the client and the server alike:

* `violations` lists everything that is wrong with a message, with paths;
* `beyond` lists what an answer of a newer server holds that is not in this contract;
* `resolve` fills in every default, so that the request says all that will be used;
* `warnings` lists fields that were set but have no effect;
* `describe` lists the parameters, for reference pages and forms;
* `assign` sets a field from text, as a command line does.

Paths are dotted proto field names from the message's root: ``trainer.scheduler_t_0``.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar, cast

from google.protobuf import descriptor_pb2, json_format, unknown_fields
from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    EnumValueDescriptor,
    FieldDescriptor,
    OneofDescriptor,
)
from google.protobuf.message import Message

from trainwire.v1 import dataset_pb2, model_pb2, options_pb2, system_pb2, training_pb2

__all__ = [
    "NOT_DIGESTED",
    "ContractError",
    "Parameter",
    "Violation",
    "assign",
    "beyond",
    "bounded_by",
    "canonical_json",
    "compare_versions",
    "contract_digest",
    "contract_version",
    "describe",
    "differences",
    "is_there",
    "listing",
    "overlay",
    "request_digest",
    "resolve",
    "set_fields",
    "violations",
    "warnings",
]

NOT_DIGESTED = ("request_id", "display_name", "labels", "validate_only")
"""Fields of a TrainingRequest that do not change what is trained."""

_M = TypeVar("_M", bound=Message)
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
}
_UNSIGNED = {FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64}
_REALS = {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}
_EMPTY = "is set but empty; leave it out"


@dataclass(frozen=True)
class Violation:
    """What is wrong with a field (or without effect), and what is allowed."""

    field: str
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}"


def listing(violations: Iterable[Violation]) -> str:
    """Violations in one line, as messages of errors have them."""
    return "; ".join(str(violation) for violation in violations)


class ContractError(ValueError):
    """A message breaks the contract; `violations` says where and how."""

    def __init__(self, violations: list[Violation]) -> None:
        super().__init__(listing(violations))
        self.violations = violations


@dataclass(frozen=True)
class Parameter:
    """One leaf field of a message, as the contract describes it."""

    path: str
    type: str
    repeated: bool
    enum_values: tuple[str, ...]
    oneof: str
    param: options_pb2.Param
    field: FieldDescriptor


# ------------------------------------------------------------------------ the options


@cache
def field_param(field: FieldDescriptor) -> options_pb2.Param:
    return field.GetOptions().Extensions[options_pb2.param]


@cache
def oneof_param(oneof: OneofDescriptor) -> options_pb2.OneofParam:
    return oneof.GetOptions().Extensions[options_pb2.oneof_param]


@cache
def value_param(value: EnumValueDescriptor) -> options_pb2.Param:
    return value.GetOptions().Extensions[options_pb2.value_param]


def _oneofs(message: Message) -> list[OneofDescriptor]:
    """The oneofs a person wrote: proto3 `optional` makes one of each field, which do not count."""
    return written_oneofs(cast("Descriptor", message.DESCRIPTOR))


@cache
def written_oneofs(descriptor: Descriptor) -> list[OneofDescriptor]:
    return [
        oneof
        for oneof in descriptor.oneofs
        if not (len(oneof.fields) == 1 and oneof.name == f"_{oneof.fields[0].name}")
    ]


def _fields(message: Message) -> list[FieldDescriptor]:
    return _fields_of(cast("Descriptor", message.DESCRIPTOR))


@cache
def _fields_of(descriptor: Descriptor) -> list[FieldDescriptor]:
    return list(descriptor.fields)


def is_repeated(field: FieldDescriptor) -> bool:
    """`is_repeated` is new in protobuf 6.31, and the older `label` is deprecated there."""
    known: bool | None = getattr(field, "is_repeated", None)
    if known is not None:
        return known
    label: int = getattr(field, "label")  # noqa: B009 - new type stubs do not know it
    return label == FieldDescriptor.LABEL_REPEATED


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _is_node(field: FieldDescriptor) -> bool:
    """Whether the field is a single message, with fields of its own."""
    return field.message_type is not None and not is_repeated(field)


def is_partial(field: FieldDescriptor) -> bool:
    """Whether the field is a message that is laid over another one, and incomplete by itself."""
    return field_param(field).partial


def _default(field: FieldDescriptor) -> Any:
    """The declared default as a Python value, or None."""
    value = field_param(field).default
    kind = value.WhichOneof("kind")
    if kind is None:
        return None
    plain = getattr(value, kind)
    if field.enum_type is not None:
        return field.enum_type.values_by_name[plain].number
    return int(plain) if field.cpp_type in _INTEGERS else plain


def join_path(path: str, name: str) -> str:
    """The path of a field below another one; "" is the root."""
    return f"{path}.{name}" if path else name


def _lookup(message: Message, path: str) -> Any:
    """The value at a path; enum values as numbers."""
    value: Any = message
    for name in path.split("."):
        value = getattr(value, name)
    return value


def is_there(message: Message, path: str) -> bool:
    """Whether the field is there: not below a member of a oneof that was not chosen."""
    value: Any = message
    for name in path.split(".")[:-1]:
        field = value.DESCRIPTOR.fields_by_name[name]
        if not field.has_presence:
            return True  # a map: what follows is a key
        if field.containing_oneof is not None and not value.HasField(name):
            return False
        value = getattr(value, name)
    return True


# ------------------------------------------------------------------------ resolve


def resolve(message: _M) -> _M:
    """A copy of `message` with every field that has a default set.

    Oneofs take their default member, nested messages are created, and fields without a default
    (a column name, say) stay as they are, as do partial messages. The input is not changed.
    """
    resolved = type(message)()
    resolved.CopyFrom(message)
    _fill(resolved)
    _fill_from_others(resolved, resolved)
    return resolved


def _fill(message: Message) -> None:
    for oneof in _oneofs(message):
        member = oneof_param(oneof).default
        if member and message.WhichOneof(oneof.name) is None:
            getattr(message, member).SetInParent()
    for field in _fields(message):
        _fill_field(message, field)


def _fill_field(message: Message, field: FieldDescriptor) -> None:
    if is_partial(field):
        return
    if _is_node(field):
        child = getattr(message, field.name)
        if field.containing_oneof is None:
            child.SetInParent()
        if message.HasField(field.name):
            _fill(child)
    elif field.has_presence and not message.HasField(field.name):
        default = _default(field)
        if default is not None:
            setattr(message, field.name, default)


def _fill_from_others(message: Message, root: Message) -> None:
    """Second pass: defaults that are another field's effective value."""
    for field in _fields(message):
        if _is_node(field):
            if message.HasField(field.name) and not is_partial(field):
                _fill_from_others(getattr(message, field.name), root)
        elif field_param(field).default_from and not message.HasField(field.name):
            setattr(message, field.name, _lookup(root, field_param(field).default_from))


# ------------------------------------------------------------------------ violations


def violations(message: Message) -> list[Violation]:
    """Everything in `message` that breaks the contract, in field order; empty if it is sound.

    Covers unknown fields and enum values at any depth, required fields, ranges, NaN, patterns,
    lengths, and the rules between fields and members of oneofs (checked on effective values). In a
    partial message nothing is required, and those rules are left to what it is laid over.
    """
    found = list(_unknown(message, "")) + list(_broken(message, "", partial=False))
    # Nearly all calls have no more to check, and each is checked.
    if not _may_relate(cast("Descriptor", message.DESCRIPTOR)):
        return found
    blamed = {violation.field for violation in found}
    # A value that is wrong by itself says nothing about the fields that it would limit.
    effective = resolve(message)
    return found + list(_broken_relations(effective, effective, "", blamed))


def _unknown(message: Message, path: str) -> Iterator[Violation]:
    for number in _unknown_numbers(message):
        yield _unreadable(cast("Descriptor", message.DESCRIPTOR), number, path)
    for field, value in message.ListFields():
        for child_path, child in _children(field, value, join_path(path, field.name)):
            yield from _unknown(child, child_path)


def _unknown_numbers(message: Message) -> list[int]:
    """Numbers of the fields that could not be read, each once."""
    # The type stubs do not know that the set can be iterated.
    items = cast("Any", unknown_fields.UnknownFieldSet(message))
    return list(dict.fromkeys(item.field_number for item in items))


def _unreadable(descriptor: Descriptor, number: int, path: str) -> Violation:
    known = descriptor.fields_by_number.get(number)
    if known is None:
        problem = f"unknown field number {number} of {descriptor.full_name}; {_not_here()}"
        return Violation(join_path(path, str(number)), problem)
    # protobuf also puts aside what has another type on the wire, and map entries with more in them.
    return Violation(join_path(path, known.name), f"cannot be read as {type_text(known)}")


def _children(field: FieldDescriptor, value: Any, path: str) -> Iterator[tuple[str, Message]]:
    """The messages held by a field, with their paths."""
    if field.message_type is None or is_map(field):
        return
    if is_repeated(field):
        yield from ((f"{path}[{i}]", item) for i, item in enumerate(value))
    else:
        yield path, value


def _broken(message: Message, path: str, partial: bool) -> Iterator[Violation]:
    for oneof in _oneofs(message):
        required = oneof_param(oneof).required and not partial
        if required and message.WhichOneof(oneof.name) is None:
            names = ", ".join(field.name for field in oneof.fields)
            yield Violation(join_path(path, oneof.name), f"required: set one of {names}")
    for field in _fields(message):
        yield from _broken_field(message, field, join_path(path, field.name), partial)


def _broken_field(
    message: Message, field: FieldDescriptor, path: str, partial: bool
) -> Iterator[Violation]:
    value = getattr(message, field.name)
    if is_map(field):
        yield from _broken_map(field, value, path)
    elif is_repeated(field):
        yield from _broken_list(field, value, path, partial)
    elif _is_node(field):
        # A member of a oneof that was not chosen is not there; other messages count as empty.
        if field.containing_oneof is None or message.HasField(field.name):
            yield from _broken(value, path, partial or is_partial(field))
    elif field.has_presence and not message.HasField(field.name):
        if field_param(field).required and not partial:
            yield Violation(path, f"required: {field_param(field).description}")
    else:
        yield from _broken_value(field, value, path)


def _broken_map(field: FieldDescriptor, value: Any, path: str) -> Iterator[Violation]:
    yield from _too_many(field, value, path)
    limit = field_param(field).max_length
    if "" in value:
        yield Violation(path, f"a key {_EMPTY}")
    for key in sorted(value):
        if field_param(field).HasField("max_length") and max(len(key), len(value[key])) > limit:
            yield Violation(f"{path}.{key[:40]}", f"key and value take at most {limit} characters")


def _broken_list(
    field: FieldDescriptor, value: Any, path: str, partial: bool
) -> Iterator[Violation]:
    yield from _too_many(field, value, path)
    seen: set[Any] = set()
    for i, item in enumerate(value):
        if field.message_type is not None:
            yield from _broken(item, f"{path}[{i}]", partial)
            continue
        yield from _broken_value(field, item, f"{path}[{i}]")
        if field_param(field).unique_items and item in seen:
            yield Violation(f"{path}[{i}]", f"{item!r} is there twice")
        seen.add(item)


def _too_many(field: FieldDescriptor, value: Any, path: str) -> Iterator[Violation]:
    param = field_param(field)
    if param.HasField("max_items") and len(value) > param.max_items:
        yield Violation(path, f"{len(value)} entries; allowed: at most {param.max_items}")


def _broken_value(field: FieldDescriptor, value: Any, path: str) -> Iterator[Violation]:
    if field.enum_type is not None:
        yield from _broken_enum(field.enum_type, value, path)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING and field.type == field.TYPE_STRING:
        yield from _broken_string(field_param(field), value, path)
    elif field.cpp_type in _INTEGERS | _REALS and not _in_range(field_param(field), value):
        yield Violation(path, f"{_plain(value)} is not allowed; allowed: {range_text(field)}")


def _broken_enum(enum: EnumDescriptor, value: int, path: str) -> Iterator[Violation]:
    allowed = ", ".join(enum_names(enum))
    if value not in enum.values_by_number:
        problem = f"{value} is not a value of {enum.name}; allowed: {allowed}; {_not_here()}"
        yield Violation(path, problem)
    elif value == 0:
        name = enum.values_by_number[0].name
        yield Violation(path, f"{name} is not a value of {enum.name}; allowed: {allowed}")


def _broken_string(param: options_pb2.Param, value: str, path: str) -> Iterator[Violation]:
    if param.required and not value:
        yield Violation(path, f"required: {param.description}")
    elif param.HasField("max_length") and len(value) > param.max_length:
        yield Violation(path, f"{len(value)} characters; allowed: at most {param.max_length}")
    elif param.pattern and not value and not re.fullmatch(param.pattern, ""):
        yield Violation(path, _EMPTY)
    elif param.pattern and not re.fullmatch(param.pattern, value):
        yield Violation(path, f"{value[:80]!r} is not allowed; allowed: {param.pattern}")


def _in_range(param: options_pb2.Param, value: float) -> bool:
    return math.isfinite(value) and not (
        (param.HasField("minimum") and value < param.minimum)
        or (param.HasField("maximum") and value > param.maximum)
        or (param.HasField("exclusive_minimum") and value <= param.exclusive_minimum)
        or (param.HasField("exclusive_maximum") and value >= param.exclusive_maximum)
    )


@cache
def _may_relate(descriptor: Descriptor) -> bool:
    """Whether there can be rules between fields: not where all are plain and none is named."""
    return any(
        field.message_type is not None
        or field.enum_type is not None
        or field_param(field).less_than
        or field_param(field).sum_below_one_with
        or field_param(field).maximum_from
        for field in _fields_of(descriptor)
    )


def _broken_relations(
    message: Message, root: Message, path: str, blamed: set[str]
) -> Iterator[Violation]:
    for field in _fields(message):
        here = join_path(path, field.name)
        if _is_node(field):
            if message.HasField(field.name) and not is_partial(field):
                yield from _misplaced(root, field_param(field), here)
                yield from _broken_relations(getattr(message, field.name), root, here, blamed)
        elif here not in blamed:
            yield from _misplaced_value(message, root, field, here)
            for limit in _broken_limits(root, field_param(field), here, blamed):
                value = _plain(getattr(message, field.name))
                yield Violation(here, f"{value} is not allowed; allowed: {limit}")


def _misplaced(root: Message, param: options_pb2.Param, path: str) -> Iterator[Violation]:
    """A member of a oneof that was chosen where it is not allowed."""
    condition = param.allowed_when
    if param.HasField("allowed_when") and not _holds(root, condition):
        actual = _value_name(root, condition.field)
        yield Violation(
            path,
            f"not allowed while {condition.field} is {actual}; allowed: with {condition.equals} "
            f"({param.description})",
        )


def _misplaced_value(
    message: Message, root: Message, field: FieldDescriptor, path: str
) -> Iterator[Violation]:
    """A value of an enum that was chosen where it is not allowed."""
    if field.enum_type is None or is_repeated(field):
        return
    value = field.enum_type.values_by_number[getattr(message, field.name)]
    for found in _misplaced(root, value_param(value), path):
        yield Violation(path, f"{value.name} is {found.description}")


def _broken_limits(
    root: Message, param: options_pb2.Param, path: str, blamed: set[str]
) -> Iterator[str]:
    """The limits that other fields set to the one at `path` and that its value breaks."""
    parent = path.rpartition(".")[0]
    rules = (
        (_sibling(parent, param.less_than), operator.lt, "less than"),
        (param.maximum_from, operator.le, "at most"),
        (_sibling(parent, param.sum_below_one_with), _below_one, "less than 1 together with"),
    )
    for other, holds, words in rules:
        if not other or other in blamed or not is_there(root, other):
            continue
        if not holds(_lookup(root, path), _lookup(root, other)):
            yield f"{words} {_named(root, other)}"


def bounded_by(message: Message, source: str) -> list[tuple[str, Any]]:
    """Paths and values of the fields whose largest value is that of the field at `source`.

    For who takes that largest value from elsewhere. Fields of members that were not chosen are left
    out.
    """
    bounded = (p.path for p in describe(type(message)) if p.param.maximum_from == source)
    return [(path, _lookup(message, path)) for path in bounded if is_there(message, path)]


def _sibling(parent: str, name: str) -> str:
    return join_path(parent, name) if name else ""


def _below_one(one: float, other: float) -> bool:
    return one + other < 1


def _named(root: Message, path: str) -> str:
    return f"{path}, which is {_plain(_lookup(root, path))}"


# ------------------------------------------------------------------------ old and new


def _not_here() -> str:
    """Said to a caller whose contract may be newer; only the callee's version is known here."""
    return (
        f"contract {contract_version()} does not have it: "
        "if the caller's contract has it, the server is older"
    )


def beyond(answer: Message) -> list[Violation]:
    """What an answer holds that this contract does not: fields and enum values, with paths.

    Such an answer comes from a newer server. It is not wrong: the rest of it can be read, and what
    cannot is kept when the message is copied or serialized.
    """
    return list(_beyond(answer, ""))


def _beyond(message: Message, path: str) -> Iterator[Violation]:
    for number in _unknown_numbers(message):
        what = f"unknown field number {number} of {message.DESCRIPTOR.full_name}"
        yield _newer(join_path(path, str(number)), what)
    for field, value in message.ListFields():
        here = join_path(path, field.name)
        if field.enum_type is not None:
            yield from _unknown_values(field.enum_type, value, here)
        for child_path, child in _children(field, value, here):
            yield from _beyond(child, child_path)


def _unknown_values(enum: EnumDescriptor, value: Any, path: str) -> Iterator[Violation]:
    for number in [value] if isinstance(value, int) else value:
        if number not in enum.values_by_number:
            yield _newer(path, f"{number} is not a value of {enum.name}")


def _newer(path: str, what: str) -> Violation:
    here = f"contract {contract_version()} does not have it"
    return Violation(path, f"{what}; {here}: the server is newer")


def compare_versions(mine: str, theirs: str) -> Literal["same", "older", "newer"]:
    """Whether `theirs` is the same version as `mine`, an older or a newer one.

    Versions are MAJOR.MINOR.PATCH (https://semver.org), compared number by number.

    Raises:
        ValueError: one of them is no such version.
    """
    one, other = _version_numbers(mine), _version_numbers(theirs)
    if one == other:
        return "same"
    return "older" if other < one else "newer"


def _version_numbers(version: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+\.\d+\.\d+", version, re.ASCII):
        raise ValueError(f"{version!r} is no version; allowed: MAJOR.MINOR.PATCH, as in 0.1.0")
    return tuple(int(number) for number in version.split("."))


# ------------------------------------------------------------------------ what was set


def set_fields(message: Message) -> list[str]:
    """Paths of the fields that are set, in field order; a chosen but empty oneof member counts."""
    return list(_set_fields(message, ""))


def _set_fields(message: Message, path: str) -> Iterator[str]:
    for field, value in message.ListFields():
        yield from _set_at(field, value, join_path(path, field.name))


def _set_at(field: FieldDescriptor, value: Any, path: str) -> Iterator[str]:
    if not _is_node(field):
        yield path
    elif value.ListFields():
        yield from _set_fields(value, path)
    elif field.containing_oneof is not None:
        yield path


def warnings(request: training_pb2.TrainingRequest) -> list[Violation]:
    """Fields that were set but have no effect with the others as they are."""
    effective = resolve(request)
    parameters = {parameter.path: parameter for parameter in describe(type(request))}
    found = []
    for path in set_fields(request):
        parameter = parameters.get(path)
        if parameter is None or not parameter.param.HasField("active_when"):
            continue
        condition = _unmet(effective, parameters, parameter.param.active_when)
        if condition is not None:
            actual = _value_name(effective, condition.field)
            found.append(Violation(path, _without_effect(condition, actual)))
    return found


def _unmet(
    effective: Message, parameters: Mapping[str, Parameter], condition: options_pb2.Condition
) -> options_pb2.Condition | None:
    """The condition if it does not hold, or else one that its own field has; None if all hold."""
    if not _holds(effective, condition):
        return condition
    decider = parameters.get(condition.field)
    if decider is None or not decider.param.HasField("active_when"):
        return None
    return _unmet(effective, parameters, decider.param.active_when)


def _holds(effective: Message, condition: options_pb2.Condition) -> bool:
    return _value_name(effective, condition.field) == condition.equals


def _without_effect(condition: options_pb2.Condition, actual: str) -> str:
    return f"set, but without effect while {condition.field} is {actual}, not {condition.equals}"


def _value_name(message: Message, path: str) -> str:
    """The value at a path as `Condition.equals` writes it."""
    *parents, leaf = path.split(".")
    holder = _lookup(message, ".".join(parents)) if parents else message
    if leaf in holder.DESCRIPTOR.oneofs_by_name:
        return str(holder.WhichOneof(leaf))
    field = cast("FieldDescriptor", holder.DESCRIPTOR.fields_by_name[leaf])
    return value_text(field, getattr(holder, leaf))


def differences(one: Message, other: Message) -> list[str]:
    """Paths at which two messages of one type differ; what `set_fields` does not list is none."""
    return sorted(_differences(one, other, ""))


def _differences(one: Message, other: Message, path: str) -> Iterator[str]:
    for field in _fields(one):
        here = join_path(path, field.name)
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.has_presence and one.HasField(field.name) != other.HasField(field.name):
            yield from _set_at(field, mine if one.HasField(field.name) else theirs, here)
        elif _is_node(field):
            yield from _differences(mine, theirs, here)
        elif mine != theirs:
            yield here


def overlay(base: _M, changes: _M) -> _M:
    """A copy of `base` with every field of a partial message set as it is there.

    Lists are replaced, maps get more entries, and a chosen member of a oneof takes the place of the
    one before. The inputs are not changed.
    """
    laid = type(base)()
    laid.CopyFrom(base)
    _lay(laid, changes)
    return laid


def _lay(message: Message, changes: Message) -> None:
    for field, value in changes.ListFields():
        if is_repeated(field) and not is_map(field):
            message.ClearField(field.name)
        if _is_node(field):
            getattr(message, field.name).SetInParent()
            _lay(getattr(message, field.name), value)
        elif is_map(field):
            getattr(message, field.name).update(value)
        elif is_repeated(field):
            getattr(message, field.name).extend(value)
        else:
            setattr(message, field.name, value)


# ------------------------------------------------------------------------ digests


def canonical_json(request: training_pb2.TrainingRequest) -> str:
    """The effective request as JSON with sorted keys, without the fields in `NOT_DIGESTED`."""
    kept = resolve(request)
    for name in NOT_DIGESTED:
        cast("Message", kept).ClearField(name)
    plain = json_format.MessageToDict(kept, preserving_proto_field_name=True)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))


def request_digest(request: training_pb2.TrainingRequest) -> str:
    """SHA-256 of `canonical_json`, in lower-case hexadecimal: equal digests train alike."""
    return hashlib.sha256(canonical_json(request).encode()).hexdigest()


def contract_version() -> str:
    """Version of the contract this process was built with, such as "0.1.0"."""
    return training_pb2.DESCRIPTOR.GetOptions().Extensions[options_pb2.contract_version]


def contract_digest() -> str:
    """SHA-256 over the compiled files of the contract, in lower-case hexadecimal."""
    modules = (dataset_pb2, model_pb2, options_pb2, system_pb2, training_pb2)
    digest = hashlib.sha256()
    for module in modules:
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        digest.update(file.SerializeToString(deterministic=True))
    return digest.hexdigest()


# ------------------------------------------------------------------------ describe


def describe(message: type[Message] = training_pb2.TrainingRequest) -> list[Parameter]:
    """Every leaf field below a message, depth first in the order of the proto file."""
    return list(_parameters(cast("Descriptor", message.DESCRIPTOR)))


@cache
def _parameters(descriptor: Descriptor) -> tuple[Parameter, ...]:
    return tuple(_describe(descriptor, ""))


def _describe(descriptor: Descriptor, path: str) -> Iterator[Parameter]:
    for field in descriptor.fields:
        here = join_path(path, field.name)
        if _is_node(field):
            yield from _describe(cast("Descriptor", field.message_type), here)
        else:
            yield _parameter(field, here)


def _parameter(field: FieldDescriptor, path: str) -> Parameter:
    return Parameter(
        path=path,
        type=type_text(field),
        repeated=is_repeated(field) and not is_map(field),
        enum_values=tuple(enum_names(field.enum_type)) if field.enum_type else (),
        oneof=_enclosing_oneof(cast("Descriptor", field.containing_type)),
        param=field_param(field),
        field=field,
    )


def _enclosing_oneof(descriptor: Descriptor) -> str:
    """Name of the TrainingRequest oneof that `descriptor` is a member of, or ""."""
    for message in training_pb2.DESCRIPTOR.message_types_by_name.values():
        for oneof in written_oneofs(message):
            if any(field.message_type is descriptor for field in oneof.fields):
                return str(oneof.name)
    return ""


def type_text(field: FieldDescriptor) -> str:
    """The field's type as a person writes it: "uint32", "SchedulerType", "map<string, string>"."""
    if is_map(field):
        return "map<string, string>"
    if field.enum_type is not None:
        return str(field.enum_type.name)
    if field.message_type is not None:
        return str(field.message_type.name)
    names = cast("Any", descriptor_pb2.FieldDescriptorProto.Type)
    return str(names.Name(field.type)).removeprefix("TYPE_").lower()


def enum_names(enum: EnumDescriptor) -> list[str]:
    """Names of the values a field may take, "unspecified" left out."""
    return [value.name for value in enum.values if value.number != 0]


def default_text(field: FieldDescriptor) -> str:
    """The default as a person writes it; empty if there is none."""
    if field_param(field).default_from:
        return f"value of {field_param(field).default_from}"
    default = _default(field)
    return "" if default is None else value_text(field, default)


def value_text(field: FieldDescriptor, value: Any) -> str:
    """A value as a person writes it: enum values by name, true and false in lower case."""
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return str(known.name if known else value)
    return _plain(value)


def range_text(field: FieldDescriptor) -> str:
    """The range as mathematicians write it, such as "(0, 1]"; empty if the field has none."""
    param = field_param(field)
    low = f"[{_plain(param.minimum)}" if param.HasField("minimum") else ""
    low = f"({_plain(param.exclusive_minimum)}" if param.HasField("exclusive_minimum") else low
    high = f"{_plain(param.maximum)}]" if param.HasField("maximum") else ""
    high = f"{_plain(param.exclusive_maximum)})" if param.HasField("exclusive_maximum") else high
    if not low and field.cpp_type in _UNSIGNED:
        low = "[0" if high else ""
    if not low and not high:
        return "any finite number" if field.cpp_type in _REALS else ""
    return f"{low or '(-inf'}, {high or 'inf)'}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


# ------------------------------------------------------------------------ assign


def assign(message: Message, path: str, text: str) -> None:
    """Set the field at `path` from text.

    Enum values may be short (``CONSTANT``), list entries are separated by commas, a map entry is
    ``labels.KEY``, and a oneof member without fields is chosen by ``path=``.

    Raises:
        ContractError: no such field, or text that is no such value.
    """
    *parents, leaf = path.split(".")
    holder = message
    for depth, name in enumerate(parents):
        field = _field(holder, name, ".".join(parents[: depth + 1]), message)
        if is_map(field):
            key = ".".join([*parents[depth + 1 :], leaf])
            getattr(holder, name)[key] = _parse(_map_value(field), text, path)
            return
        if not _is_node(field):
            raise ContractError([Violation(path, f"{name} has no fields of its own")])
        holder = getattr(holder, name)
    _assign_leaf(holder, _field(holder, leaf, path, message), path, text)


def _map_value(field: FieldDescriptor) -> FieldDescriptor:
    return cast("Descriptor", field.message_type).fields_by_name["value"]


def _field(holder: Message, name: str, path: str, root: Message) -> FieldDescriptor:
    for field in _fields(holder):
        if field.name == name:
            return field
    allowed = ", ".join(field.name for field in _fields(holder))
    problem = f"no such field; allowed here: {allowed}{_hint(name, root)}"
    raise ContractError([Violation(path, problem)])


def _hint(name: str, root: Message) -> str:
    """Where a field of this name does stand, for those who forgot its message."""
    paths = [p.path for p in describe(type(root)) if p.path.split(".")[-1] == name]
    return f" (did you mean {' or '.join(paths)}?)" if paths else ""


def _assign_leaf(holder: Message, field: FieldDescriptor, path: str, text: str) -> None:
    if _is_node(field):
        if text:
            raise ContractError([Violation(path, "is a message: set one of its fields")])
        getattr(holder, field.name).SetInParent()
    elif is_repeated(field) and not is_map(field):
        items = [item.strip() for item in text.split(",") if item.strip()]
        getattr(holder, field.name)[:] = [_parse(field, item, path) for item in items]
    elif is_map(field):
        raise ContractError([Violation(path, f"is a map: set {path}.KEY")])
    else:
        setattr(holder, field.name, _parse(field, text, path))


def _parse(field: FieldDescriptor, text: str, path: str) -> Any:
    try:
        return _parsers(field)(text)
    except (ValueError, KeyError):
        problem = f"{text!r} is not allowed; allowed: {_allowed_text(field)}"
        raise ContractError([Violation(path, problem)]) from None


def _allowed_text(field: FieldDescriptor) -> str:
    if field.enum_type is not None:
        return ", ".join(enum_names(field.enum_type))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return "true, false"
    return f"{type_text(field)} {range_text(field)}".rstrip()


def _parsers(field: FieldDescriptor) -> Any:
    if field.enum_type is not None:
        return lambda text: _parse_enum(field.enum_type, text)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return lambda text: {"true": True, "false": False}[text.lower()]
    if field.cpp_type in _INTEGERS:
        return lambda text: _parse_integer(field, text)
    return _parse_real if field.cpp_type in _REALS else _parse_string


def _parse_string(text: str) -> str:
    """Refuses what is not Unicode, such as bytes of another encoding on a command line."""
    text.encode()
    return text


def _parse_integer(field: FieldDescriptor, text: str) -> int:
    """Refuses what the field cannot hold; what the contract forbids is left to `violations`."""
    value = int(_number_text(text))
    signed = field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
    wide = field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
    bits = 64 if wide else 32
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    if not low <= value < high:
        raise ValueError(text)
    return value


def _parse_real(text: str) -> float:
    return float(_number_text(text))


def _number_text(text: str) -> str:
    """Refuses what Python alone takes for part of a number: `1_0`, digits of other scripts, spaces
    around it."""
    if not text.isascii() or "_" in text or text != text.strip():
        raise ValueError(text)
    return text


def _parse_enum(enum: EnumDescriptor, text: str) -> int:
    """Accepts the full name and the name without the enum's prefix, in any case."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    name = text.upper()
    return int(enum.values_by_name[name if name.startswith(prefix) else prefix + name].number)
