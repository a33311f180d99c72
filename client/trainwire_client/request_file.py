"""A TrainingRequest in a file: JSON or protobuf text format, such as a bundle's `request.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from google.protobuf.descriptor import Descriptor

from trainwire import contract
from trainwire.v1 import training_pb2
from trainwire_client.errors import InvalidRequestError, UnreadableRequestError, invalid_request

__all__ = ["read_request"]

_TEXT_SUFFIXES = (".txtpb", ".textproto", ".pbtxt")
# A file of nothing but brackets ends in RecursionError.
_UNREADABLE = (
    OSError,
    RecursionError,
    ValueError,
    json_format.ParseError,
    text_format.ParseError,
)


def read_request(path: Path) -> training_pb2.TrainingRequest:
    """The request in a file; what it holds is not checked against ranges here.

    The suffix tells the form (.json; .txtpb, .textproto or .pbtxt); without one of these, a file
    that begins with { is JSON.

    Raises:
        UnreadableRequestError: it is neither; the message says at which line or path.
        InvalidRequestError: JSON fields that the contract does not have, all of them.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        return _from_json(text) if _is_json(path, text) else _from_text(text)
    except InvalidRequestError as error:
        error.message = f"{path}: {error.message}"
        raise
    except _UNREADABLE as error:
        raise UnreadableRequestError(f"cannot read {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error).replace("\n", " ")


def _is_json(path: Path, text: str) -> bool:
    suffix = path.suffix.lower()
    return suffix == ".json" or (suffix not in _TEXT_SUFFIXES and text.lstrip().startswith("{"))


def _from_text(text: str) -> training_pb2.TrainingRequest:
    return text_format.Parse(text, training_pb2.TrainingRequest())


def _from_json(text: str) -> training_pb2.TrainingRequest:
    request = training_pb2.TrainingRequest()
    wrong = list(_misshapen(json.loads(text), request.DESCRIPTOR, ""))
    if wrong:
        raise invalid_request(wrong)
    return json_format.Parse(text, request)


def _misshapen(plain: Any, descriptor: Descriptor, path: str) -> Iterator[contract.Violation]:
    """Fields that do not exist, and messages that are no JSON objects; protobuf names one alone."""
    if not isinstance(plain, dict):
        where = path or "(the whole)"
        yield contract.Violation(where, f"is no JSON object; allowed: fields of {descriptor.name}")
        return
    for key, value in plain.items():
        # JSON may have either form of a name, see https://protobuf.dev/programming-guides/json.
        names, json_names = descriptor.fields_by_name, descriptor.fields_by_camelcase_name
        field = names.get(key) or json_names.get(key)
        here = f"{path}.{key}" if path else key
        if field is None:
            yield contract.Violation(here, f"no such field; allowed here: {', '.join(names)}")
        elif field.message_type is not None and not contract.is_map(field) and value is not None:
            yield from _misshapen(value, field.message_type, here)
