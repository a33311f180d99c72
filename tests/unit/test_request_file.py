"""Requests in files: JSON and text format, told apart, with errors that say where."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import json_format, text_format

from trainwire import contract
from trainwire.v1 import training_pb2
from trainwire_client.errors import InvalidRequestError, UnreadableRequestError
from trainwire_client.request_file import read_request


def _request() -> training_pb2.TrainingRequest:
    request = training_pb2.TrainingRequest(dataset="datasets/d", labels={"team": "quänts"})
    request.data.column.name = "y"
    request.data.windows.feature_columns[:] = ["a", "b"]
    request.trainer.scheduler_type = training_pb2.SCHEDULER_TYPE_COSINE
    request.trainer.use_augmentation = False
    request.trainer.learning_rate = 0.1 + 0.2
    request.balancing.focal_gamma = 0
    return request


@pytest.mark.parametrize("name", ["r.json", "r.JSON", "r", "r.txt"])
@pytest.mark.parametrize("proto_names", [True, False])
def test_json_comes_back_as_it_was_set(tmp_path: Path, name: str, proto_names: bool) -> None:
    text = json_format.MessageToJson(_request(), preserving_proto_field_name=proto_names)
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_request(tmp_path / name) == _request()


@pytest.mark.parametrize("name", ["r.txtpb", "r.textproto", "r.pbtxt", "r"])
def test_text_format_comes_back_as_it_was_set(tmp_path: Path, name: str) -> None:
    text = text_format.MessageToString(_request(), as_utf8=True)
    (tmp_path / name).write_text(f"# a comment\n{text}", encoding="utf-8")
    assert read_request(tmp_path / name) == _request()


def test_the_request_of_a_bundle_is_the_effective_one(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text(contract.canonical_json(_request()))
    read = read_request(tmp_path / "request.json")
    assert contract.request_digest(read) == contract.request_digest(_request())
    assert contract.differences(contract.resolve(read), read) == ["validate_only"]


def test_every_unknown_field_of_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text('{"trainer": {"epoch": 3, "batch": {"size": 1}}, "x": 1, "labels": {"y": "z"}}')
    with pytest.raises(InvalidRequestError) as caught:
        read_request(path)
    wrong = {item.field: item.description for item in caught.value.violations}
    assert list(wrong) == ["trainer.epoch", "trainer.batch", "x"]
    assert wrong["trainer.epoch"].startswith("no such field; allowed here: epochs, batch_size,")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "field"), [("[]", "(the whole)"), ("null", "(the whole)"), ('{"data": 5}', "data")]
)
def test_what_is_no_object_is_named(tmp_path: Path, text: str, field: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InvalidRequestError) as caught:
        read_request(tmp_path / "r.json")
    assert [item.field for item in caught.value.violations] == [field]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("r.json", '{"trainer": ', "line 1 column 13"),
        ("r.json", '{"trainer": {"epochs": 3, "epochs": 4}}', "duplicate key epochs"),
        ("r.json", '{"trainer": {"epochs": 1.5}}', "1.5"),
        ("r.json", '{"trainer": {"scheduler_type": "FASTER"}}', "FASTER"),
        ("r.json", "", "line 1"),
        ("r.json", "[" * 100_000, "recursion"),
        ("r.txtpb", "trainer {\n  epochs: 4\n  epoch: 3 }", r'3:3 : .*no field named "epoch"'),
        ("r.txtpb", "trainer { epochs: 4 epochs: 5 }", "epochs"),
        ("r.txtpb", "{}", "1:1"),
        ("r", "hello", "1:"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UnreadableRequestError, match=words) as caught:
        read_request(tmp_path / name)
    assert str(caught.value).startswith(f"cannot read {tmp_path / name}: ")
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(UnreadableRequestError, match="No such file"):
        read_request(tmp_path / "no.json")
    (tmp_path / "latin").write_bytes(b'display_name: "\xff"')
    with pytest.raises(UnreadableRequestError, match="utf-8"):
        read_request(tmp_path / "latin")
