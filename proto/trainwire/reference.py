"""Writes the contract down for people (Markdown) and for forms (JSON Schema).

Both are made from the compiled contract alone and are the same every time, so that a changed
default shows up as a changed line.

    python -m trainwire.reference docs
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from google.protobuf.descriptor import (
    Descriptor,
    FieldDescriptor,
    OneofDescriptor,
)
from google.protobuf.json_format import MessageToDict

from trainwire import contract
from trainwire.contract import (
    field_param,
    is_map,
    is_partial,
    is_repeated,
    join_path,
    oneof_param,
    value_param,
    written_oneofs,
)
from trainwire.v1 import dataset_pb2, model_pb2, options_pb2, system_pb2, training_pb2

__all__ = ["FILES", "json_schema", "json_text", "main", "markdown"]

FILES = ("contract.md", "contract.schema.json")
_ROOT = training_pb2.TrainingRequest.DESCRIPTOR
_SERVICE_FILES = (training_pb2, dataset_pb2, model_pb2, system_pb2)
_UINT_MAXIMUM = {
    FieldDescriptor.CPPTYPE_UINT32: 2**32 - 1,
    FieldDescriptor.CPPTYPE_UINT64: 2**64 - 1,
}

# ------------------------------------------------------------------------ Markdown

_HOW_TO_READ = """\
Every field of every request: its type, default, range, unit and meaning. Made from the options in
`proto/trainwire/v1/*.proto` by `python -m trainwire.reference docs`; do not edit.

- **Path**: proto field names from the root of the request, separated by dots. The command line
  takes them as `--set PATH=VALUE`.
- **Type**: `double` is a real number (never NaN or infinite), `uint32` a count. For an enum, the
  values are listed; the command line also takes them without their prefix, in any case.
- **Default**: what is used when the field is not set. A dash: no default.
- **Range**: `[` and `]` include the bound, `(` and `)` do not.
- **Condition**: the field has an effect only then; set without it, the job carries a warning.
- **Required**: a request without the field is refused.

An unknown field or enum value, at any depth, is an error; so is a value out of its range. All
violations are reported at once.
"""
_HEADER = ("Path", "Type", "Default", "Range", "Unit", "Meaning", "Condition", "Required")


def markdown() -> str:
    """The reference page, docs/contract.md."""
    parts = [
        "# The contract",
        f"Contract version {contract.contract_version()}, package `trainwire.v1`.",
        _HOW_TO_READ.strip(),
        "## TrainingRequest",
        *_training_sections(),
        "## Choices",
        "Of the members of a choice (a proto `oneof`) at most one is set.",
        _table(("Choice", "Members", "If none is set"), _choice_rows()),
        *_conditions_of_members(),
        *_conditions_of_values(),
        "## Other requests",
        *_other_sections(),
    ]
    return "\n\n".join(parts) + "\n"


def _training_sections() -> Iterator[str]:
    for path, descriptor in _messages(_ROOT, ""):
        heading = f"`{path}`: {descriptor.name}" if path else "The request itself"
        rows = [_row(field, join_path(path, field.name)) for field in _leaves(descriptor)]
        if rows:
            yield f"### {heading}"
            yield _table(_HEADER, rows)


def _other_sections() -> Iterator[str]:
    for descriptor, calls in _other_requests():
        yield f"### {descriptor.name}"
        yield f"Sent to {calls}."
        choices = [_oneof_text(oneof, "") for _, oneof in _oneofs(descriptor, "")]
        yield from (f"{name}: {members}; {default}." for name, members, default in choices)
        parameters = [
            (join_path(path, field.name), field)
            for path, message in _messages(descriptor, "")
            for field in _leaves(message)
        ]
        rows = [_row(field, path) for path, field in parameters]
        yield _table(_HEADER, rows) if rows else "No fields."


def _row(field: FieldDescriptor, path: str) -> tuple[str, ...]:
    param = field_param(field)
    return (
        f"`{path}`",
        _type_cell(field),
        _code(contract.default_text(field)) or "-",
        _range_cell(field),
        param.unit,
        param.description,
        _condition(param),
        "yes" if param.required else "",
    )


def _type_cell(field: FieldDescriptor) -> str:
    repeated = is_repeated(field) and not is_map(field)
    kind = f"{'repeated ' if repeated else ''}{contract.type_text(field)}"
    if field.enum_type is None:
        return kind
    return f"{kind}: {', '.join(_code(name) for name in contract.enum_names(field.enum_type))}"


def _range_cell(field: FieldDescriptor) -> str:
    param = field_param(field)
    numeric = field.message_type is None and field.enum_type is None
    bounds = contract.range_text(field) if numeric else ""
    parts = [
        bounds,
        f"at most {_code(param.maximum_from)}" if param.maximum_from else "",
        f"less than {_code(param.less_than)}" if param.less_than else "",
        f"less than 1 with {_code(param.sum_below_one_with)}" if param.sum_below_one_with else "",
        f"at most {param.max_length} characters" if param.HasField("max_length") else "",
        f"at most {param.max_items} entries" if param.HasField("max_items") else "",
        "all different" if param.unique_items else "",
        _code(param.pattern),
    ]
    return ", ".join(part for part in parts if part)


def _condition(param: options_pb2.Param) -> str:
    if not param.HasField("active_when"):
        return ""
    return f"`{param.active_when.field}` is `{param.active_when.equals}`"


def _choice_rows() -> list[tuple[str, ...]]:
    return [_oneof_text(oneof, path) for path, oneof in _oneofs(_ROOT, "")]


def _conditions_of_members() -> Iterator[str]:
    """A sentence for every member that may not be chosen always."""
    for path, oneof in _oneofs(_ROOT, ""):
        for field in oneof.fields:
            if field_param(field).HasField("allowed_when"):
                yield _condition_of(_code(join_path(path, field.name)), field_param(field))


def _conditions_of_values() -> Iterator[str]:
    """A sentence for every value of an enum that may not be chosen always."""
    for parameter in contract.describe():
        for name, param in _conditional_values(parameter.field).items():
            yield _condition_of(f"`{parameter.path}` = `{name}`", param)


def _conditional_values(field: FieldDescriptor) -> dict[str, options_pb2.Param]:
    values = field.enum_type.values if field.enum_type is not None else []
    found = {value.name: value_param(value) for value in values}
    return {name: param for name, param in found.items() if param.HasField("allowed_when")}


def _condition_of(what: str, param: options_pb2.Param) -> str:
    condition = param.allowed_when
    return (
        f"{what} is allowed where `{condition.field}` is `{condition.equals}` only: "
        f"{param.description}."
    )


def _oneof_text(oneof: OneofDescriptor, path: str) -> tuple[str, str, str]:
    param = oneof_param(oneof)
    members = ", ".join(_code(field.name) for field in oneof.fields)
    default = f"{_code(param.default)} is taken" if param.default else "nothing is taken"
    return _code(join_path(path, oneof.name)), members, "required" if param.required else default


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


# ------------------------------------------------------------------------ JSON Schema


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of TrainingRequest in proto JSON with proto field names.

    What JSON Schema has no word for is in `x-unit`, `x-active-when`, `x-allowed-when` (of values
    of an enum), `x-default-from`, `x-maximum-from`, `x-less-than`, `x-sum-below-one-with` and
    `x-oneofs`; paths in them start at the root of the request, save those of `x-less-than` and
    `x-sum-below-one-with`, which name a sibling.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "TrainingRequest",
        "description": "A trainwire training request, as proto JSON with proto field names",
        "x-contract-version": contract.contract_version(),
        **_message_schema(_ROOT),
    }


def json_text() -> str:
    """The content of docs/contract.schema.json."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _message_schema(descriptor: Descriptor) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {field.name: _field_schema(field) for field in descriptor.fields},
        "additionalProperties": False,
    }
    required = [field.name for field in descriptor.fields if _is_required(field)]
    if required:
        schema["required"] = required
    oneofs = written_oneofs(descriptor)
    if oneofs:
        schema["allOf"] = [_oneof_schema(oneof) for oneof in oneofs]
        schema["x-oneofs"] = {oneof.name: _oneof_notes(oneof) for oneof in oneofs}
    return schema


def _oneof_schema(oneof: OneofDescriptor) -> dict[str, Any]:
    """Exactly one member, or at most one where the oneof is not required."""
    members: list[dict[str, Any]] = [{"required": [field.name]} for field in oneof.fields]
    none = [] if oneof_param(oneof).required else [{"not": {"anyOf": list(members)}}]
    return {"oneOf": [*members, *none]}


def _oneof_notes(oneof: OneofDescriptor) -> dict[str, Any]:
    param = oneof_param(oneof)
    notes: dict[str, Any] = {"members": [field.name for field in oneof.fields]}
    allowed = {
        field.name: _condition_note(field_param(field).allowed_when)
        for field in oneof.fields
        if field_param(field).HasField("allowed_when")
    }
    notes |= {"allowed-when": allowed} if allowed else {}
    return notes | ({"required": True} if param.required else {"default": param.default})


def _is_required(field: FieldDescriptor) -> bool:
    """Whether a message without the field is refused: for it, or for what is required below it."""
    if field.message_type is None or is_repeated(field):
        return field_param(field).required
    below = field.message_type
    chosen = field.containing_oneof is not None
    return not chosen and (
        any(_is_required(child) for child in below.fields)
        or any(oneof_param(oneof).required for oneof in written_oneofs(below))
    )


def _field_schema(field: FieldDescriptor) -> dict[str, Any]:
    if is_map(field):
        return _described(field, _map_schema(field_param(field)))
    if is_repeated(field):
        return _described(field, _list_schema(field))
    if field.message_type is not None:
        return _message_schema(field.message_type)
    return _described(field, _value_schema(field))


def _map_schema(param: options_pb2.Param) -> dict[str, Any]:
    text = {"type": "string", **_limit("maxLength", param, "max_length")}
    names = {"minLength": 1, **_limit("maxLength", param, "max_length")}
    count = _limit("maxProperties", param, "max_items")
    return {"type": "object", "additionalProperties": text, "propertyNames": names, **count}


def _list_schema(field: FieldDescriptor) -> dict[str, Any]:
    param = field_param(field)
    unique = {"uniqueItems": True} if param.unique_items else {}
    count = _limit("maxItems", param, "max_items")
    return {"type": "array", "items": _value_schema(field), **count, **unique}


def _value_schema(field: FieldDescriptor) -> dict[str, Any]:
    if field.enum_type is not None:
        return {"type": "string", "enum": contract.enum_names(field.enum_type)}
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return {"type": "boolean"}
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _string_schema(field_param(field))
    return _number_schema(field)


def _string_schema(param: options_pb2.Param) -> dict[str, Any]:
    pattern = {"pattern": f"^(?:{param.pattern})$"} if param.pattern else {}
    shortest = {"minLength": 1} if param.required else {}
    return {"type": "string", **shortest, **_limit("maxLength", param, "max_length"), **pattern}


def _number_schema(field: FieldDescriptor) -> dict[str, Any]:
    param = field_param(field)
    whole = field.cpp_type in _UINT_MAXIMUM
    schema: dict[str, Any] = {"type": "integer" if whole else "number"}
    if whole:
        schema |= {"minimum": 0, "maximum": _UINT_MAXIMUM[field.cpp_type]}
    for word, name in (
        ("minimum", "minimum"),
        ("exclusiveMinimum", "exclusive_minimum"),
        ("maximum", "maximum"),
        ("exclusiveMaximum", "exclusive_maximum"),
    ):
        schema |= _limit(word, param, name)
    return {word: _whole(value) for word, value in schema.items()}


def _described(field: FieldDescriptor, schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with what the contract says beside the type."""
    param = field_param(field)
    notes: dict[str, Any] = {
        "x-unit": param.unit,
        "x-default-from": param.default_from,
        "x-maximum-from": param.maximum_from,
        "x-less-than": param.less_than,
        "x-sum-below-one-with": param.sum_below_one_with,
        "x-active-when": _condition_note(param.active_when),
        "x-allowed-when": {
            name: _condition_note(value.allowed_when)
            for name, value in _conditional_values(field).items()
        },
    }
    return {
        "description": param.description,
        **schema,
        **_default(param),
        **{name: note for name, note in notes.items() if note},
    }


def _condition_note(condition: options_pb2.Condition) -> dict[str, str]:
    return {"field": condition.field, "equals": condition.equals} if condition.field else {}


def _default(param: options_pb2.Param) -> dict[str, Any]:
    if not param.HasField("default"):
        return {}
    return {"default": _whole(cast("Any", MessageToDict(param.default)))}


def _limit(word: str, param: options_pb2.Param, name: str) -> dict[str, Any]:
    return {word: getattr(param, name)} if param.HasField(cast("Any", name)) else {}


def _whole(value: Any) -> Any:
    """Options hold every number as a double; 60.0 is 60."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# ------------------------------------------------------------------------ walking


def _messages(descriptor: Descriptor, path: str) -> Iterator[tuple[str, Descriptor]]:
    """A message and the single messages below it, depth first, with their paths."""
    yield path, descriptor
    for field in descriptor.fields:
        if _is_below(field):
            below = cast("Descriptor", field.message_type)
            yield from _messages(below, join_path(path, field.name))


def _leaves(descriptor: Descriptor) -> list[FieldDescriptor]:
    return [field for field in descriptor.fields if not _is_below(field)]


def _is_below(field: FieldDescriptor) -> bool:
    """Whether the fields of a field are shown one by one."""
    return field.message_type is not None and not is_repeated(field) and not is_partial(field)


def _oneofs(descriptor: Descriptor, path: str) -> Iterator[tuple[str, OneofDescriptor]]:
    for here, message in _messages(descriptor, path):
        yield from ((here, oneof) for oneof in written_oneofs(message))


def _other_requests() -> list[tuple[Descriptor, str]]:
    """Requests other than TrainingRequest, with the calls they are sent to."""
    calls: dict[str, list[str]] = {}
    messages: dict[str, Descriptor] = {}
    for file in _SERVICE_FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                messages[method.input_type.full_name] = method.input_type
                calls.setdefault(method.input_type.full_name, []).append(
                    f"`{service.name}.{method.name}`"
                )
    others = (name for name in messages if name != _ROOT.full_name)
    return [(messages[name], ", ".join(calls[name])) for name in others]


def main(arguments: list[str]) -> None:
    """Write both files into the folder named by the only argument.

    Raises:
        SystemExit: status 2, there is another number of arguments, or an option in its place.
    """
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write("usage: python -m trainwire.reference FOLDER\n")
        sys.exit(2)
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(FILES, (markdown(), json_text()), strict=True):
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
