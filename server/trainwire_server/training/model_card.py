"""The page that tells a person what a model is, how good it is and how to use it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from google.protobuf.message import Message

from trainwire import contract
from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared, Split
from trainwire_server.data.targets import find_target

_TEMPLATE = """\
# {architecture}: {classes}

A time-series classifier trained by trainwire: it takes {input} and gives a
probability for each of {class_count} classes.

- Dataset: `{dataset}`
- Request digest: `{digest}`
- Weights: those of epoch {best_epoch}, of {epochs_run} run

## Data

| split | rows | {samples} |
| --- | --- | --- |
{splits}
{gaps}{thresholds}
## Metrics

| split | loss | accuracy | balanced accuracy | macro F1 | MCC | ROC AUC |
| --- | --- | --- | --- | --- | --- | --- |
{metrics}
{intervals}
Test split, by class:

| class | precision | recall | F1 | ROC AUC | {samples} | share of predictions |
| --- | --- | --- | --- | --- | --- | --- |
{class_rows}
{adjusted}
## What these figures do and do not show

- The loss is plain cross-entropy, neither weighted nor smoothed.
- The epoch was picked by its validation metrics, which are therefore optimistic; the test split was
  read once, afterwards.
- They are one run with one seed on one split: another seed or split gives other figures.{overlap}
- The loss of training was reshaped by class balancing, focal weighting and mixup where the settings
  below say so; the probabilities are then not calibrated{calibrated}.
- {split_note}

## Use
{onnx_use}
With torch, for what needs the network itself:

```python
# pip install 'trainwire[torch]'
from trainwire_client.bundle import load_bundle

model = load_bundle("PATH/OF/THIS/FOLDER")
model.feature_columns         # the order of the {feature_axis} axis
model.predict_proba({samples})  # raw values {shape}; scales by itself
model.predict({samples})        # class names
```

## Settings

Every parameter with the value that was used (`request.json`):

```json
{settings}
```
"""

_ONNX_USE = """
With onnxruntime alone; scaling and class names are in the file:

```python
# pip install onnxruntime; ORT_DISABLE_TELEMETRY=1 keeps it from reporting to its makers
import json
import onnxruntime

model = onnxruntime.InferenceSession("PATH/OF/THIS/FOLDER/model.onnx")
names = json.loads(model.get_modelmeta().custom_metadata_map["class_names"])
(probabilities,) = model.run(None, {{"windows": {samples}}})  # raw values, float64 {shape}
{decision}
```

For the rows of a Parquet, CSV or Arrow file, with `pip install 'trainwire[cli,predict]'`:

```sh
trainwire predict PATH/OF/THIS/FOLDER FILE --output predictions.csv
```
"""
_NO_ONNX_USE = """
There is no `model.onnx`: a warning of the job says why.
"""
_INTERVALS = """
Test split, {level:.0%} intervals by block bootstrap over its windows in time order:

| metric | interval |
| --- | --- |
{rows}
"""
_GAPS = """
Values were missing: {dropped} rows of the table were left out, {filled} values were taken from the
row before (`data.missing_values` below). `trainwire predict` does the same to new data.
"""
_THRESHOLDS = """
A return below {lower:.6g} {unit} is SELL, above {upper:.6g} BUY: {when}.
"""
_ADJUSTED = """
### As the model predicts

The figures above are of the network as it is; these are of the model, with what validation
picked. Of few validation {samples} of a class that is chance to a good part: see what is left on
test.

| split | loss | accuracy | balanced accuracy | macro F1 | MCC | ROC AUC |
| --- | --- | --- | --- | --- | --- | --- |
{metrics}
{intervals}{calibration}
| class | {threshold}precision | recall | F1 | share of predictions |
| --- | {rule}--- | --- | --- | --- |
{class_rows}
"""
_CALIBRATION = """
Outputs are divided by the temperature {temperature:.4f} before the softmax (Guo et al. 2017). The
expected calibration error on the test split, over 15 bins of equal width, is {after:.4f}; it was
{before:.4f} without.
"""
_DECISION = "predicted = [names[i] for i in probabilities.argmax(axis=1)]"
_DECISION_BY_THRESHOLDS = """\
thresholds = json.loads(model.get_modelmeta().custom_metadata_map["decision_thresholds"])
predicted = [names[i] for i in (probabilities.astype(float) / thresholds).argmax(axis=1)]"""
_METRICS = (
    "loss",
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "matthews_correlation",
    "roc_auc",
)


_SPLIT_NOTES = {
    "chronological": "The split is by the order of the rows, which is time where they have one; "
    "data whose behaviour has changed since are not covered.",
    "stratified": "The split is by chance: rows that resemble each other, of one person or machine "
    "say, are in several splits, and others than those of the data are not covered.",
    "split_column": "The split is the one that a column of the data says; how far it tells of "
    "other data depends on how that was chosen.",
}


def render(
    request: training_pb2.TrainingRequest,
    prepared: Prepared,
    result: training_pb2.JobSucceeded,
    *,
    has_onnx: bool,
) -> str:
    """The model card in Markdown.

    Args:
        request: effective parameters (`contract.resolve`).
        prepared: what it was trained on.
        result: best epoch and metrics.
        has_onnx: whether `model.onnx` is in the bundle.
    """
    described = _describe_input(request, prepared)
    return _TEMPLATE.format(
        architecture=request.model.WhichOneof("architecture"),
        classes=", ".join(_cell(name) for name in prepared.class_names[:10]),
        class_count=len(prepared.class_names),
        split_note=_SPLIT_NOTES[request.data.WhichOneof("split") or "chronological"],
        **described,
        adjusted=_describe_adjusted(result, described["samples"]),
        calibrated=" by themselves" if result.adjusted.HasField("temperature") else "",
        onnx_use=_describe_onnx(result, described) if has_onnx else _NO_ONNX_USE,
        dataset=request.dataset,
        digest=contract.request_digest(request),
        best_epoch=result.best_epoch,
        epochs_run=result.epochs_run,
        splits=_split_rows(prepared),
        gaps=_describe_gaps(prepared),
        thresholds=_describe_thresholds(request, prepared),
        metrics=_metric_rows(result.validation, result.test),
        intervals=_intervals(result.test_intervals),
        class_rows="\n".join(_class_row(metrics) for metrics in result.test.classes),
        settings=json.dumps(json.loads(contract.canonical_json(request)), indent=2),
    )


def _describe_input(request: training_pb2.TrainingRequest, prepared: Prepared) -> dict[str, str]:
    """What the model takes, in the words of its layout."""
    steps, features = prepared.sequence_length, len(prepared.feature_columns)
    if request.data.WhichOneof("layout") == "samples":
        return {
            "samples": "series",
            "input": f"a series of {steps} steps in {features} channels",
            "overlap": "",
            "feature_axis": "middle",
            "shape": f"[n, {features}, {steps}]",
        }
    history = prepared.history
    before = f" and the {history} rows before them, which scale them," if history else ""
    return {
        "samples": "windows",
        "input": f"the last {steps} rows of {features} features{before}",
        "overlap": " Windows\n  overlap, so there is less independent evidence than the number of "
        "windows suggests.",
        "feature_axis": "last",
        "shape": f"[n, {history + steps}, {features}]",
    }


def _describe_gaps(prepared: Prepared) -> str:
    dropped, filled = prepared.dropped_rows, prepared.filled_values
    return _GAPS.format(dropped=dropped, filled=filled) if dropped or filled else ""


def _describe_thresholds(request: training_pb2.TrainingRequest, prepared: Prepared) -> str:
    """What made classes of returns; nothing where a column held the label."""
    target, limits = find_target(request), prepared.thresholds
    if limits is None:
        return ""
    window = limits.volatility_window
    return _THRESHOLDS.format(
        lower=limits.lower,
        upper=limits.upper,
        unit=f"volatilities of {window} rows" if window else "of the price",
        when=f"the first within {target.horizon} rows"
        if target.member == "triple_barrier"
        else f"that over {target.horizon} rows",
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


def _describe_onnx(result: training_pb2.JobSucceeded, described: dict[str, str]) -> str:
    has_thresholds = len(result.adjusted.decision_thresholds) > 0
    decision = _DECISION_BY_THRESHOLDS if has_thresholds else _DECISION
    return _ONNX_USE.format(decision=decision, **described)


def _describe_adjusted(result: training_pb2.JobSucceeded, samples: str) -> str:
    """Metrics of the model where it does not just predict what the network finds likeliest."""
    if not result.HasField("adjusted"):
        return ""
    found = result.adjusted
    thresholds = [f"{value:.4f}" for value in found.decision_thresholds]
    shown = zip(found.test.classes, thresholds or [""] * len(found.test.classes), strict=True)
    return _ADJUSTED.format(
        samples=samples,
        metrics=_metric_rows(found.validation, found.test),
        intervals=_intervals(found.test_intervals),
        calibration=_describe_calibration(found),
        threshold="threshold | " if thresholds else "",
        rule="--- | " if thresholds else "",
        class_rows="\n".join(_adjusted_row(metrics, threshold) for metrics, threshold in shown),
    )


def _describe_calibration(found: training_pb2.AdjustedPrediction) -> str:
    if not found.HasField("temperature"):
        return ""
    error = found.calibration_error
    return _CALIBRATION.format(
        temperature=found.temperature, before=error.before, after=error.after
    )


def _adjusted_row(metrics: training_pb2.ClassMetrics, threshold: str) -> str:
    scores = (_score(metrics, name) for name in ("precision", "recall", "f1", "predicted_share"))
    return _row(_cell(metrics.name), *([threshold] if threshold else []), *scores)


def _metric_rows(validation: training_pb2.SplitMetrics, test: training_pb2.SplitMetrics) -> str:
    parts = {"validation": validation, "test": test}
    return "\n".join(
        _row(name, *(_score(m, metric) for metric in _METRICS)) for name, m in parts.items()
    )


def _score(metrics: Message, name: str) -> str:
    """A metric that does not exist for these data is left empty."""
    is_optional = metrics.DESCRIPTOR.fields_by_name[name].has_presence
    missing = is_optional and not metrics.HasField(name)
    return "" if missing else f"{getattr(metrics, name):.4f}"


def _intervals(intervals: Sequence[training_pb2.MetricInterval]) -> str:
    if not intervals:
        return ""
    rows = [_row(each.metric, f"{each.lower:.4f} to {each.upper:.4f}") for each in intervals]
    return _INTERVALS.format(level=intervals[0].level, rows="\n".join(rows))


def _class_row(metrics: training_pb2.ClassMetrics) -> str:
    scores = (_score(metrics, name) for name in ("precision", "recall", "f1", "roc_auc"))
    share = f"{metrics.predicted_share:.4f}"
    return _row(_cell(metrics.name), *scores, str(metrics.support), share)
