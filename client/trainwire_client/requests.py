"""Requests on their way out: names in full, an idempotency key, checked against the contract."""

from __future__ import annotations

import uuid

from google.protobuf.message import Message

from trainwire import contract
from trainwire.v1 import dataset_pb2, model_pb2, training_pb2
from trainwire_client.errors import invalid_request

__all__ = [
    "Deletion",
    "check",
    "deletion",
    "refuse_validate_only",
    "resource_name",
    "resumption",
    "validation",
    "with_request_id",
]

Deletion = (
    training_pb2.DeleteTrainingRequest
    | dataset_pb2.DeleteDatasetRequest
    | model_pb2.DeleteModelRequest
)
_DELETIONS: dict[str, type[Deletion]] = {
    "jobs": training_pb2.DeleteTrainingRequest,
    "datasets": dataset_pb2.DeleteDatasetRequest,
    "models": model_pb2.DeleteModelRequest,
}


def check(request: Message) -> None:
    """Refuse a request that the server would refuse for its form.

    Raises:
        InvalidRequestError: it breaks the contract; all violations, with paths.
    """
    violations = contract.violations(request)
    if violations:
        raise invalid_request(violations)


def resource_name(collection: str, resource: Message | str) -> str:
    """Full resource name of a message, a full name (``jobs/abc``) or a bare id (``abc``).

    Raises:
        InvalidRequestError: it names nothing in the collection.
    """
    given: str = resource if isinstance(resource, str) else getattr(resource, "name", "")
    name = given if "/" in given else f"{collection}/{given}"
    if not name.startswith(f"{collection}/") or name == f"{collection}/":
        problem = f"{given!r} is not allowed; allowed: {collection}/ID, or ID alone"
        raise invalid_request([contract.Violation("name", problem)])
    return name


def deletion(resource: Message | str) -> Deletion:
    """The request that deletes a resource, given as a message or by its full name.

    Raises:
        InvalidRequestError: it names no job, dataset or model; an id alone could be any of them.
    """
    name: str = resource if isinstance(resource, str) else getattr(resource, "name", "")
    collection, slash, _ = name.partition("/")
    if not slash or collection not in _DELETIONS:
        allowed = ", ".join(f"{kind}/ID" for kind in _DELETIONS)
        raise invalid_request(
            [contract.Violation("name", f"{name!r} is not allowed; allowed: {allowed}")]
        )
    request = _DELETIONS[collection](name=name)
    check(request)
    return request


def validation(request: training_pb2.TrainingRequest) -> training_pb2.TrainingRequest:
    """A copy that asks what would be trained, without training."""
    sent = training_pb2.TrainingRequest()
    sent.CopyFrom(request)
    sent.validate_only = True
    return sent


def refuse_validate_only(request: training_pb2.TrainingRequest) -> None:
    """Refuse a request that makes no job where the job is to be watched.

    Raises:
        InvalidRequestError: `validate_only` is true.
    """
    if request.validate_only:
        problem = "true makes no job that could be watched; to check a request, validate it"
        raise invalid_request([contract.Violation("validate_only", problem)])


def resumption(
    job: training_pb2.TrainingJob | str,
    epochs: int | None,
    changes: training_pb2.TrainingRequest | None,
) -> training_pb2.ResumeTrainingRequest:
    """The request that continues a job; `changes` is copied, and has a `request_id` then.

    Raises:
        InvalidRequestError: `job` names no job, or `epochs` is in `changes` too.
    """
    changes = with_request_id(changes or training_pb2.TrainingRequest())
    if epochs is not None:
        if changes.trainer.HasField("epochs"):
            problem = f"{changes.trainer.epochs}, but epochs={epochs}; allowed: one of the two"
            raise invalid_request([contract.Violation("changes.trainer.epochs", problem)])
        changes.trainer.epochs = epochs
    return training_pb2.ResumeTrainingRequest(name=resource_name("jobs", job), changes=changes)


def with_request_id(request: training_pb2.TrainingRequest) -> training_pb2.TrainingRequest:
    """A copy that has a `request_id`: a try whose answer was lost makes no second job."""
    sent = training_pb2.TrainingRequest()
    sent.CopyFrom(request)
    if not sent.HasField("request_id"):
        sent.request_id = uuid.uuid4().hex
    return sent
