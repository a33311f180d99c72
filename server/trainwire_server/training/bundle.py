"""The model bundle: a folder of files that is enough to predict with, or to train again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from google.protobuf import json_format
from google.protobuf.message import Message
from torch import nn

from trainwire import contract
from trainwire.architectures.build import build
from trainwire.v1 import model_pb2, training_pb2
from trainwire_server.data import durable
from trainwire_server.data.prepare import Prepared
from trainwire_server.errors import JobFailure
from trainwire_server.training import checkpoint, model_card

FOLDER = "bundle"
WEIGHTS = "model.safetensors"
ONNX = "model.onnx"
REQUEST = "request.json"
PREPROCESSING = "preprocessing.json"
POSTPROCESSING = "postprocessing.json"
METRICS = "metrics.json"
CARD = "MODEL_CARD.md"


def write(
    folder: Path,
    request: training_pb2.TrainingRequest,
    prepared: Prepared,
    weights: checkpoint.Weights,
    result: training_pb2.JobSucceeded,
    onnx: bytes | None,
) -> None:
    """Write a bundle, whole or not at all, in the place of an older one.

    Nothing in it says when or by which job it was made: equal runs give equal files.

    Args:
        folder: to be created; its parent exists.
        request: effective parameters (`contract.resolve`).
        prepared: what it was trained on.
        weights: those of the best epoch.
        result: best epoch and metrics.
        onnx: from `onnx_model.export`; None if the model could not be exported.

    Raises:
        JobFailure: STORAGE_FULL.
    """
    with _replacing(folder) as partial:
        checkpoint.save_weights(weights, partial / WEIGHTS)
        _write_json(partial / REQUEST, json.loads(contract.canonical_json(request)))
        _write_json(partial / PREPROCESSING, _preprocessing_json(prepared))
        _write_json(partial / METRICS, _metrics_json(result))
        if result.HasField("adjusted"):
            _write_json(partial / POSTPROCESSING, _postprocessing_json(result.adjusted))
        if onnx is not None:
            durable.write_file(partial / ONNX, onnx)
        card = model_card.render(request, prepared, result, has_onnx=onnx is not None)
        durable.write_file(partial / CARD, card.encode())


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder that takes the place of `folder` when it is filled, or leaves no trace."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(partial, folder)
        durable.sync_folder(folder.parent)
    except OSError as error:
        # Others need the room.
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno not in durable.NO_ROOM:
            raise
        raise _no_room(error) from error


def _no_room(error: OSError) -> JobFailure:
    message = (
        f"the server's disk has no room for the model ({error.strerror}); the training is done and "
        "its checkpoints are kept: free space there, then resume the job (ResumeTraining)"
    )
    return JobFailure(training_pb2.FAILURE_REASON_STORAGE_FULL, message)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    durable.write_file(path, f"{text}\n".encode())


def _preprocessing_json(prepared: Prepared) -> dict[str, Any]:
    return {
        "sequence_length": prepared.sequence_length,
        "history": prepared.history,
        "feature_columns": prepared.feature_columns,
        "mean": prepared.mean.tolist(),
        "scale": prepared.scale.tolist(),
        "class_names": prepared.class_names,
    }


def _postprocessing_json(adjusted: training_pb2.AdjustedPrediction) -> dict[str, Any]:
    return {
        "temperature": adjusted.temperature if adjusted.HasField("temperature") else 1.0,
        "decision_thresholds": list(adjusted.decision_thresholds),
    }


def _metrics_json(result: training_pb2.JobSucceeded) -> dict[str, Any]:
    metrics = {
        "best_epoch": result.best_epoch,
        "validation": _full_dict(result.validation),
        "test": _full_dict(result.test),
        "test_intervals": [_full_dict(interval) for interval in result.test_intervals],
    }
    if result.HasField("adjusted"):
        metrics["adjusted"] = _full_dict(result.adjusted)
    return metrics


def _full_dict(message: Message) -> dict[str, Any]:
    """Zeros included: a recall of 0 is a result, not a gap."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def describe(folder: Path) -> model_pb2.Model:
    """What a bundle says about itself; name, job, dataset_digest and create_time stay empty."""
    request = training_pb2.TrainingRequest()
    json_format.Parse((folder / REQUEST).read_text(encoding="utf-8"), request)
    preprocessing = json.loads((folder / PREPROCESSING).read_text(encoding="utf-8"))
    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    features, names = preprocessing["feature_columns"], preprocessing["class_names"]
    with torch.device("meta"):  # shapes without memory
        module = build(request.model, len(features), len(names), preprocessing["sequence_length"])
    adjusted = metrics.get("adjusted", {}).get("test")
    return model_pb2.Model(
        files=[_describe_file(path) for path in sorted(folder.iterdir())],
        class_names=names,
        test=json_format.ParseDict(metrics["test"], training_pb2.SplitMetrics()),
        adjusted_test=adjusted and json_format.ParseDict(adjusted, training_pb2.SplitMetrics()),
        parameter_count=count_parameters(module),
        best_epoch=metrics["best_epoch"],
        request_digest=contract.request_digest(request),
    )


def _describe_file(path: Path) -> model_pb2.ModelFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return model_pb2.ModelFile(name=path.name, size_bytes=path.stat().st_size, sha256=digest)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
