"""ModelService over the wire."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from trainwire import contract
from trainwire.v1 import dataset_pb2, model_pb2, model_pb2_grpc, training_pb2
from trainwire_client import TrainingClient

RequestFor = Callable[..., training_pb2.TrainingRequest]
Refusal = Callable[[Callable[[], Any]], Any]

FILES = [
    "MODEL_CARD.md",
    "metrics.json",
    "model.onnx",
    "model.safetensors",
    "preprocessing.json",
    "request.json",
]


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> model_pb2_grpc.ModelServiceStub:
    return model_pb2_grpc.ModelServiceStub(channel)


@pytest.fixture(scope="module")
def finished(
    client: TrainingClient, dataset: dataset_pb2.Dataset, small: RequestFor
) -> training_pb2.TrainingJob:
    return client.wait(client.submit(small(dataset.name)))


def download(
    stub: model_pb2_grpc.ModelServiceStub, name: str
) -> list[tuple[model_pb2.ModelFile, bytes]]:
    """Each file as it was announced, with its bytes."""
    files: list[tuple[model_pb2.ModelFile, bytes]] = []
    for message in stub.DownloadModel(model_pb2.DownloadModelRequest(name=name)):
        if message.HasField("file"):
            files.append((message.file, b""))
        else:
            file, data = files.pop()
            files.append((file, data + message.chunk.data))
    return files


def test_a_model_says_where_it_comes_from(
    client: TrainingClient, finished: training_pb2.TrainingJob
) -> None:
    model = client.model(finished.model)
    *_, last = client.watch(finished)
    assert model.name == finished.model
    assert model.job == finished.name
    assert model.request_digest == finished.request_digest
    assert model.dataset_digest == finished.dataset_digest
    assert model.test == last.succeeded.test
    assert model.best_epoch == last.succeeded.best_epoch
    assert list(model.class_names) == ["0", "1"]
    assert model.create_time.ToSeconds() >= finished.create_time.ToSeconds()
    started = next(event.started for event in client.watch(finished) if event.HasField("started"))
    assert model.parameter_count == started.parameter_count


def test_a_download_is_what_the_model_announces(
    client: TrainingClient,
    stub: model_pb2_grpc.ModelServiceStub,
    finished: training_pb2.TrainingJob,
) -> None:
    files = download(stub, finished.model)
    assert [file for file, _ in files] == list(client.model(finished.model).files)
    assert sorted(file.name for file, _ in files) == FILES
    for file, data in files:
        assert file.size_bytes == len(data)
        assert file.sha256 == hashlib.sha256(data).hexdigest()


def test_the_bundle_holds_the_request_and_the_metrics(
    client: TrainingClient,
    stub: model_pb2_grpc.ModelServiceStub,
    finished: training_pb2.TrainingJob,
) -> None:
    files = {file.name: data for file, data in download(stub, finished.model)}
    request = training_pb2.TrainingRequest()
    json_format.Parse(files["request.json"].decode(), request)
    expected = training_pb2.TrainingRequest()
    expected.CopyFrom(finished.request)
    for name in contract.NOT_DIGESTED:
        cast("Message", expected).ClearField(name)
        cast("Message", request).ClearField(name)
    assert request == expected
    assert json.loads(files["preprocessing.json"])["feature_columns"] == ["a", "b"]
    test = client.model(finished.model).test
    assert json.loads(files["metrics.json"])["test"]["loss"] == test.loss


def test_models_are_listed_page_by_page_newest_first(
    client: TrainingClient, request_for: RequestFor
) -> None:
    models = [client.wait(client.submit(request_for(epochs=1))).model for _ in range(2)]
    listed = list(client.models(page_size=1))
    assert [model.name for model in listed[:2]] == models[::-1]
    assert listed == list(client.models())
    assert len({model.name for model in listed}) == len(listed)
    assert listed[0] == client.model(models[-1])


def test_a_page_token_of_another_make_is_invalid(
    stub: model_pb2_grpc.ModelServiceStub, refusal: Refusal
) -> None:
    refused = refusal(lambda: stub.ListModels(model_pb2.ListModelsRequest(page_token="x")))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(refused.fields) == {"page_token"}


# ------------------------------------------------------------------------ aliases


@pytest.fixture
def models(
    client: TrainingClient, request_for: RequestFor, stub: model_pb2_grpc.ModelServiceStub
) -> Iterator[list[str]]:
    """Names of two models that have no alias, nor have one afterwards."""
    jobs = [client.submit(request_for(epochs=1)) for _ in range(2)]
    names = [client.wait(job).model for job in jobs]
    yield names
    for name in names:
        for alias in client.model(name).aliases:
            stub.SetModelAlias(model_pb2.SetModelAliasRequest(alias=alias))


def give(stub: model_pb2_grpc.ModelServiceStub, alias: str, name: str) -> model_pb2.Model:
    return stub.SetModelAlias(model_pb2.SetModelAliasRequest(alias=alias, name=name))


def test_a_model_goes_by_its_aliases_in_every_call(
    client: TrainingClient, stub: model_pb2_grpc.ModelServiceStub, models: list[str]
) -> None:
    first, second = models
    give(stub, "staging", first)
    answered = give(stub, "production", first)
    assert answered.name == first
    assert list(answered.aliases) == ["production", "staging"]
    assert client.model("models/production") == client.model(first) == answered
    assert download(stub, "models/staging") == download(stub, first)
    # By alias too: what another alias names.
    assert give(stub, "previous", "models/production").name == first
    listed = {model.name: list(model.aliases) for model in client.models(page_size=1)}
    assert listed[first] == ["previous", "production", "staging"]
    assert listed[second] == []


def test_an_alias_moves_from_one_model_to_another(
    client: TrainingClient, stub: model_pb2_grpc.ModelServiceStub, models: list[str]
) -> None:
    first, second = models
    give(stub, "production", first)
    assert give(stub, "production", second) == give(stub, "production", second)
    assert list(client.model(first).aliases) == []
    assert client.model("models/production").name == second


def test_a_removed_alias_names_nothing(
    stub: model_pb2_grpc.ModelServiceStub, models: list[str], refusal: Refusal
) -> None:
    give(stub, "production", models[0])
    remove = model_pb2.SetModelAliasRequest(alias="production")
    taken = stub.SetModelAlias(remove)
    assert (taken.name, list(taken.aliases)) == (models[0], [])
    missing = refusal(lambda: stub.SetModelAlias(remove))
    assert missing.code is grpc.StatusCode.NOT_FOUND
    assert "production" in missing.message
    by_alias = model_pb2.GetModelRequest(name="models/production")
    assert refusal(lambda: stub.GetModel(by_alias)).code is grpc.StatusCode.NOT_FOUND


def test_an_alias_needs_a_model(
    stub: model_pb2_grpc.ModelServiceStub, models: list[str], refusal: Refusal
) -> None:
    give(stub, "production", models[0])
    missing = refusal(lambda: give(stub, "production", "models/nowhere"))
    assert missing.code is grpc.StatusCode.NOT_FOUND
    assert "models/nowhere" in missing.message
    by_alias = model_pb2.GetModelRequest(name="models/production")
    assert stub.GetModel(by_alias).name == models[0]


def test_an_alias_is_not_the_id_of_a_model(
    client: TrainingClient,
    stub: model_pb2_grpc.ModelServiceStub,
    request_for: RequestFor,
    refusal: Refusal,
) -> None:
    # An id begins with a digit or a letter, by chance; an alias may only begin with a letter.
    made: list[str] = []
    while not made or made[-1].removeprefix("models/")[0].isdigit():
        made.append(client.wait(client.submit(request_for(epochs=1))).model)
    refused = refusal(lambda: give(stub, made[-1].removeprefix("models/"), made[-1]))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(refused.fields) == {"alias"}


def test_a_model_with_an_alias_is_not_deleted(
    client: TrainingClient,
    stub: model_pb2_grpc.ModelServiceStub,
    models: list[str],
    refusal: Refusal,
) -> None:
    for alias in ("production", "staging"):
        give(stub, alias, models[0])
    for name in (models[0], "models/production"):
        delete = model_pb2.DeleteModelRequest(name=name)
        refused = refusal(lambda delete=delete: stub.DeleteModel(delete))  # type: ignore[misc]
        assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
        assert refused.reason == "MODEL_IN_USE"
        assert f"{models[0]} has the alias production, staging" in refused.message
    assert download(stub, models[0])


def test_an_alias_that_many_give_at_once_is_given_once(
    client: TrainingClient, stub: model_pb2_grpc.ModelServiceStub, models: list[str]
) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda name: give(stub, "production", name), models * 20))
    # Whoever gave it had it then, whatever came after.
    assert [(answer.name, list(answer.aliases)) for answer in answers] == [
        (name, ["production"]) for name in models * 20
    ]
    holders = [name for name in models if client.model(name).aliases]
    assert holders == [client.model("models/production").name]
