"""The reference page and the JSON Schema say what the contract says, and all of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from google.protobuf import json_format

from trainwire import contract, reference
from trainwire.v1 import training_pb2

SCHEMA = reference.json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def _effective() -> dict[str, Any]:
    request = training_pb2.TrainingRequest(dataset="datasets/d")
    request.data.column.name = "label"
    return json_format.MessageToDict(contract.resolve(request), preserving_proto_field_name=True)


def _schema_at(path: str) -> dict[str, Any]:
    schema = SCHEMA
    for name in path.split("."):
        schema = schema["properties"][name]
    return schema


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_smallest_and_the_effective_request_are_valid() -> None:
    VALIDATOR.validate({"dataset": "datasets/d", "data": {"column": {"name": "label"}}})
    VALIDATOR.validate(_effective())


def test_the_defaults_of_the_schema_are_those_that_resolve_fills_in() -> None:
    effective = _effective()
    resolved = training_pb2.TrainingRequest()
    json_format.ParseDict(effective, resolved)
    checked = 0
    for parameter in contract.describe():
        schema, value = _schema_at(parameter.path), effective
        if "default" in schema and contract.is_there(resolved, parameter.path):
            for name in parameter.path.split("."):
                value = value[name]
            assert schema["default"] == value, parameter.path
            checked += 1
    assert checked > 30


@pytest.mark.parametrize("parameter", contract.describe(), ids=lambda parameter: parameter.path)
def test_every_parameter_stands_in_both(parameter: contract.Parameter) -> None:
    assert _schema_at(parameter.path)["description"] == parameter.param.description
    # The first of this name: requests of other calls come after the one to train.
    line = next(
        line for line in reference.markdown().splitlines() if f"| `{parameter.path}` |" in line
    )
    assert parameter.param.description in line
    assert contract.default_text(parameter.field) in line
    assert all(name in line for name in parameter.enum_values)


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(request: dict[str, Any]) -> None:
        *parents, leaf = path.split(".")
        for name in parents:
            request = request.setdefault(name, {})
        request[leaf] = value

    return change


def _drop(path: str) -> Callable[[dict[str, Any]], None]:
    def change(request: dict[str, Any]) -> None:
        *parents, leaf = path.split(".")
        for name in parents:
            request = request[name]
        del request[leaf]

    return change


@pytest.mark.parametrize(
    "change",
    [
        _drop("dataset"),
        _drop("data"),
        _drop("data.column"),
        _drop("data.column.name"),
        _set("dataset", "d"),
        _set("dataset", "datasets/d\nx"),
        _set("data.column.name", ""),
        _set("data.threshold", {"price_column": "p"}),
        _set("trainer.epochs", 0),
        _set("trainer.epochs", 1.5),
        _set("trainer.seed", -1),
        _set("trainer.learning_rate", 0),
        _set("trainer.learning_rate", 1),
        _set("trainer.learning_rate", "NaN"),
        _set("trainer.scheduler_type", "SCHEDULER_TYPE_UNSPECIFIED"),
        _set("trainer.scheduler_type", "CONSTANT"),
        _set("trainer.lr_scheduler", "SCHEDULER_TYPE_COSINE"),
        _set("balancing.oversample_ratio", 0),
        _set("balancing.use_oversampling", 1),
        _set("model.hybrid_cnn_lstm.conv_blocks", 17),
        _set("data.windows.feature_columns", ["a", "a"]),
        _set("data.windows.feature_columns", [""]),
        _set("data.windows.time_column", ""),
        _set("data.windows.group_column", ""),
        _set("labels.", "x"),
        _set("labels.key", "x" * 129),
        _set("labels." + "k" * 129, "x"),
        _set("display_name", "x" * 201),
        _set("nonsense", 1),
    ],
)
def test_violations_of_the_contract_violate_the_schema(
    change: Callable[[dict[str, Any]], None],
) -> None:
    request = _effective()
    change(request)
    assert not VALIDATOR.is_valid(request)


def test_what_json_schema_has_no_word_for_is_kept() -> None:
    assert _schema_at("trainer.scheduler_t_0")["x-active-when"] == {
        "field": "trainer.scheduler_type",
        "equals": "SCHEDULER_TYPE_COSINE_WARM_RESTARTS",
    }
    assert _schema_at("trainer.epochs")["x-unit"] == "epochs"
    assert _schema_at("data")["x-oneofs"]["target"] == {
        "members": ["column", "threshold", "quantile", "triple_barrier"],
        "allowed-when": {
            name: {"field": "data.layout", "equals": "windows"}
            for name in ("threshold", "quantile", "triple_barrier")
        },
        "required": True,
    }


def test_the_page_tells_choices_conditions_and_the_other_requests() -> None:
    page = reference.markdown()
    assert (
        "| `data.target` | `column`, `threshold`, `quantile`, `triple_barrier` | required |" in page
    )
    assert "| `data.layout` | `windows`, `samples` | `windows` is taken |" in page
    assert "`data.stratified` is allowed where `data.layout` is `samples` only: " in page
    assert "`balancing.use_focal_loss` is `true`" in page
    assert "(0, 1]" in page
    assert "### WatchTrainingRequest\n\nSent to `TrainingService.WatchTraining`." in page
    assert "| `header.sha256` |" in page


def test_the_command_writes_both_files(tmp_path: Path) -> None:
    reference.main([str(tmp_path)])
    assert (tmp_path / "contract.md").read_text() == reference.markdown()
    assert json.loads((tmp_path / "contract.schema.json").read_text()) == SCHEMA


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["-"], [], ["a", "b"]])
def test_the_command_takes_one_folder(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        reference.main(arguments)
    assert refused.value.code == 2
    assert capsys.readouterr().err == "usage: python -m trainwire.reference FOLDER\n"
    assert not list(tmp_path.iterdir())


def test_output_does_not_depend_on_hashing() -> None:
    code = "from trainwire import reference as r; print(r.markdown() + r.json_text())"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {reference.markdown() + reference.json_text() + "\n"}
