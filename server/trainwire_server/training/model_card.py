"""The page that tells a person what a model is, how good it is and how to use it."""

from __future__ import annotations

import json

from trainwire import contract
from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared, Split

_TEMPLATE = """\
# {architecture}: {classes}

A time-series classifier trained by trainwire: it takes the last {sequence_length} rows of
{features} features and gives a probability for each of {class_count} classes.

- Dataset: `{dataset}`
- Request digest: `{digest}`
- Weights: those of epoch {best_epoch}, of {epochs_run} run

## Data

| split | rows | windows |
| --- | --- | --- |
{splits}

## Metrics

| split | loss | accuracy | balanced accuracy | macro F1 |
| --- | --- | --- | --- | --- |
{metrics}

Test split, by class:

| class | precision | recall | F1 | windows | share of predictions |
| --- | --- | --- | --- | --- | --- |
{class_rows}

## What these figures do and do not show

- The loss is plain cross-entropy, neither weighted nor smoothed.
- The epoch was picked by its validation metrics, which are therefore optimistic; the test split was
  read once, afterwards.
- They are one run with one seed on one split: another seed or period gives other figures. Windows
  overlap, so there is less independent evidence than the number of windows suggests.
- The loss of training was reshaped by class balancing and focal weighting where the settings below
  say so; the probabilities are then not calibrated.
- The split is by time; data whose behaviour has changed since are not covered.

## Use

```python
# pip install 'trainwire[predict]'
from trainwire_client.bundle import load_bundle

model = load_bundle("PATH/OF/THIS/FOLDER")
model.feature_columns         # the order of the last axis
model.predict_proba(windows)  # raw values [n, {sequence_length}, {features}]; scales by itself
model.predict(windows)        # class names
```

## Settings

Every parameter with the value that was used (`request.json`):

```json
{settings}
```
"""


def render(
    request: training_pb2.TrainingRequest, prepared: Prepared, result: training_pb2.JobSucceeded
) -> str:
    """The model card in Markdown.

    Args:
        request: effective parameters (`contract.resolve`).
        prepared: what it was trained on.
        result: best epoch and metrics.
    """
    return _TEMPLATE.format(
        architecture=request.model.WhichOneof("architecture"),
        classes=", ".join(_cell(name) for name in prepared.class_names[:10]),
        class_count=len(prepared.class_names),
        sequence_length=prepared.sequence_length,
        features=len(prepared.feature_columns),
        dataset=request.dataset,
        digest=contract.request_digest(request),
        best_epoch=result.best_epoch,
        epochs_run=result.epochs_run,
        splits=_split_rows(prepared),
        metrics=_metric_rows(result),
        class_rows="\n".join(_class_row(metrics) for metrics in result.test.classes),
        settings=json.dumps(json.loads(contract.canonical_json(request)), indent=2),
    )


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(name: str) -> str:
    """A name from the data, as one table cell."""
    return " ".join(name.split()).replace("|", "\\|")


def _split_rows(prepared: Prepared) -> str:
    splits: dict[str, Split] = {
        "train": prepared.train,
        "validation": prepared.validation,
        "test": prepared.test,
    }
    return "\n".join(
        _row(name, str(split.rows), str(len(split.starts))) for name, split in splits.items()
    )


def _metric_rows(result: training_pb2.JobSucceeded) -> str:
    parts = {"validation": result.validation, "test": result.test}
    return "\n".join(
        _row(name, *(f"{x:.4f}" for x in (m.loss, m.accuracy, m.balanced_accuracy, m.macro_f1)))
        for name, m in parts.items()
    )


def _class_row(metrics: training_pb2.ClassMetrics) -> str:
    scores = (f"{score:.4f}" for score in (metrics.precision, metrics.recall, metrics.f1))
    share = f"{metrics.predicted_share:.4f}"
    return _row(_cell(metrics.name), *scores, str(metrics.support), share)
