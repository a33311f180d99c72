"""Plain lines of events, jobs and models: stable, complete, harmless to a terminal."""

from __future__ import annotations

from typing import Any

import pytest

from trainwire import contract
from trainwire.v1 import dataset_pb2, model_pb2, system_pb2, training_pb2
from trainwire_client import report

JOB = "jobs/one"


def _metrics(loss: float = 0.98765, names: tuple[str, ...] = ()) -> training_pb2.SplitMetrics:
    metrics = training_pb2.SplitMetrics(
        loss=loss, accuracy=0.7123, balanced_accuracy=0.4444, macro_f1=0.3333
    )
    for name in names:
        metrics.classes.add(name=name, precision=0.5, recall=0.25, f1=1 / 3, support=120)
    return metrics


def _event(**kind: Any) -> training_pb2.TrainingEvent:
    return training_pb2.TrainingEvent(job=JOB, sequence=1, **kind)


def _started(classes: int = 2) -> training_pb2.JobStarted:
    return training_pb2.JobStarted(
        device="cpu",
        precision=training_pb2.PRECISION_FP32,
        threads=1,
        deterministic=True,
        class_names=[f"c{i}" for i in range(classes)],
        feature_columns=["a", "b"],
        class_counts=[10] * classes,
        balanced_class_counts=[20] * classes,
        class_weights=[1.5] * classes,
        train=training_pb2.SplitSize(windows=100),
        validation=training_pb2.SplitSize(windows=30),
        test=training_pb2.SplitSize(windows=20),
        purged_windows=7,
        unlabelled_windows=3,
        parameter_count=1234,
    )


EPOCH = training_pb2.EpochCompleted(
    epoch=100,
    epochs=150,
    train=_metrics(1.2345678),
    validation=_metrics(),
    learning_rate=5e-05,
    seconds=3,
    windows_per_second=642,
    is_best=True,
)
FAILURE = training_pb2.Failure(
    reason=training_pb2.FAILURE_REASON_INVALID_DATA,
    message="NaN in row 3",
    field_violations=[training_pb2.FieldViolation(field="data.windows", description="has NaN")],
)
WARNING = training_pb2.JobWarning(
    reason=training_pb2.WARNING_REASON_FIELD_WITHOUT_EFFECT,
    message="set, but without effect",
    field="trainer.scheduler_t_0",
)

ADJUSTED = training_pb2.AdjustedPrediction(
    temperature=1.23,
    decision_thresholds=[0.25, 0.75],
    validation=_metrics(),
    test=_metrics(names=("SELL", "BUY")),
    calibration_error=training_pb2.CalibrationError(before=0.21, after=0.03),
)


@pytest.mark.parametrize(
    ("event", "lines"),
    [
        (
            _event(queued=training_pb2.JobQueued(queue_position=2)),
            ["queued jobs/one position=2"],
        ),
        (
            _event(started=_started()),
            [
                "started jobs/one device=cpu precision=FP32 threads=1 deterministic=true",
                "started parameters=1234 features=2",
                "started windows train=100 validation=30 test=20 purged=7 unlabelled=3",
                "started class c0 windows=10 balanced=20 weight=1.5",
                "started class c1 windows=10 balanced=20 weight=1.5",
            ],
        ),
        (
            _event(
                started=training_pb2.JobStarted(
                    precision=training_pb2.PRECISION_FP32,
                    unscaled_windows=19,
                    dropped_rows=3,
                    filled_values=57,
                )
            ),
            [
                "started jobs/one device= precision=FP32 threads=0 deterministic=false",
                "started parameters=0 features=0",
                "started windows train=0 validation=0 test=0 purged=0 unlabelled=0",
                "started data unscaled_windows=19 dropped_rows=3 filled_values=57",
            ],
        ),
        (
            _event(epoch=EPOCH),
            [
                "epoch 100/150 loss=1.2346 val=0.9877 acc=0.712 bal=0.444 f1=0.333 lr=5e-05 *",
            ],
        ),
        (
            _event(
                progress=training_pb2.EpochProgress(
                    epoch=2, epochs=3, step=4, steps=5, train_loss=1, windows_per_second=99.6
                )
            ),
            ["progress 2/3 step=4/5 loss=1.0000 windows/s=100"],
        ),
        (
            # A sign of life, of a job that waits, say.
            _event(progress=training_pb2.EpochProgress(epoch=2, epochs=3)),
            ["progress 2/3"],
        ),
        (
            _event(warning=WARNING),
            ["warning FIELD_WITHOUT_EFFECT trainer.scheduler_t_0: set, but without effect"],
        ),
        (
            _event(
                warning=training_pb2.JobWarning(
                    reason=training_pb2.WARNING_REASON_MICRO_BATCH_HALVED, message="now 64 of 128"
                )
            ),
            ["warning MICRO_BATCH_HALVED now 64 of 128"],
        ),
        (
            _event(
                warning=training_pb2.JobWarning(
                    reason=training_pb2.WARNING_REASON_CHECKPOINT_NOT_WRITTEN, message="disk full"
                )
            ),
            ["warning CHECKPOINT_NOT_WRITTEN disk full"],
        ),
        (
            _event(
                succeeded=training_pb2.JobSucceeded(
                    model="models/m",
                    best_epoch=3,
                    epochs_run=5,
                    stopped_early=True,
                    validation=_metrics(),
                    test=_metrics(names=("SELL",)),
                )
            ),
            [
                "succeeded models/m best_epoch=3 epochs=5 early=true",
                "succeeded validation loss=0.9877 acc=0.712 bal=0.444 f1=0.333",
                "succeeded test loss=0.9877 acc=0.712 bal=0.444 f1=0.333",
                "succeeded test class SELL precision=0.500 recall=0.250 f1=0.333 windows=120",
            ],
        ),
        (
            _event(succeeded=training_pb2.JobSucceeded(model="models/m", adjusted=ADJUSTED)),
            [
                "succeeded models/m best_epoch=0 epochs=0 early=false",
                "succeeded validation loss=0.0000 acc=0.000 bal=0.000 f1=0.000",
                "succeeded test loss=0.0000 acc=0.000 bal=0.000 f1=0.000",
                "succeeded adjusted validation loss=0.9877 acc=0.712 bal=0.444 f1=0.333",
                "succeeded adjusted test loss=0.9877 acc=0.712 bal=0.444 f1=0.333",
                "succeeded adjusted temperature=1.23 calibration_error=0.030 (without 0.210)",
                "succeeded adjusted threshold SELL 0.25",
                "succeeded adjusted threshold BUY 0.75",
            ],
        ),
        (
            _event(failed=training_pb2.JobFailed(failure=FAILURE)),
            ["failed INVALID_DATA: NaN in row 3", "failed data.windows: has NaN"],
        ),
        (
            _event(resumed=training_pb2.JobResumed(epoch=3)),
            ["resumed jobs/one attempt=0 after epoch=3"],
        ),
        (
            _event(cancelled=training_pb2.JobCancelled(epochs_run=4, best_epoch=2)),
            ["cancelled jobs/one epochs=4 best_epoch=2"],
        ),
    ],
    ids=lambda value: value.WhichOneof("event") if hasattr(value, "WhichOneof") else "",
)
def test_every_event_has_its_lines(event: training_pb2.TrainingEvent, lines: list[str]) -> None:
    assert report.event_lines(event) == lines
    assert max(len(line) for line in lines) <= 80


def test_every_kind_of_event_is_covered() -> None:
    for field in training_pb2.TrainingEvent.DESCRIPTOR.oneofs_by_name["event"].fields:
        event = _event()
        getattr(event, field.name).SetInParent()
        assert report.event_lines(event)[0].startswith(f"{field.name} ")


def test_an_event_of_a_newer_contract_is_no_line() -> None:
    assert report.event_lines(_event()) == []


def test_a_thousand_classes_do_not_flood_the_terminal() -> None:
    lines = report.event_lines(_event(started=_started(1000)))
    assert len(lines) < 60
    assert lines[-1] == "started ... 950 classes more"


def test_progress_is_written_every_half_minute_at_most() -> None:
    lines: list[str] = []
    now = [0.0]
    with report.PlainReport(_job(), lines.append, clock=lambda: now[0]) as view:
        for second in range(65):
            now[0] = second
            view.show(_event(progress=training_pb2.EpochProgress(epoch=1, step=second, steps=99)))
        now[0] = 66
        view.show(_event(epoch=EPOCH))
    assert [line.split()[2] for line in lines] == ["step=30/99", "step=60/99", "loss=1.2346"]


def test_a_resumed_job_names_the_one_it_continues_and_later_attempts_themselves() -> None:
    lines: list[str] = []
    job = training_pb2.TrainingJob(name=JOB, resumed_from="jobs/old")
    with report.PlainReport(job, lines.append) as view:
        for attempt in (1, 2):
            resumed = _event(resumed=training_pb2.JobResumed(epoch=3), attempt=attempt)
            view.show(resumed)
    assert lines == [
        "resumed jobs/one attempt=1 after epoch=3 of jobs/old",
        "resumed jobs/one attempt=2 after epoch=3",
    ]


def test_a_warning_names_its_field_if_it_has_one() -> None:
    warning = training_pb2.JobWarning(message="is large", field="model.dropout")
    assert report.warning_message(warning) == "model.dropout: is large"
    warning.ClearField("field")
    assert report.warning_message(warning) == "is large"


def test_control_characters_never_reach_the_terminal() -> None:
    warning = training_pb2.JobWarning(message="a\x1b[2Jb\nc\u202ed")
    (line,) = report.event_lines(_event(warning=warning))
    assert line.isprintable()
    assert "a [2Jb c d" in line


def _job() -> training_pb2.TrainingJob:
    request = training_pb2.TrainingRequest(dataset="datasets/d", display_name="mine")
    request.data.column.name = "label"
    request.trainer.scheduler_type = training_pb2.SCHEDULER_TYPE_COSINE
    request.labels["team"] = "quants"
    job = training_pb2.TrainingJob(
        name=JOB,
        display_name="mine",
        state=training_pb2.JOB_STATE_FAILED,
        request=contract.resolve(request),
        set_fields=contract.set_fields(request),
        labels={"team": "quants"},
        progress=training_pb2.JobProgress(
            epoch=4, epochs=150, best_epoch=3, best_validation=_metrics()
        ),
        failure=FAILURE,
        warnings=[WARNING],
    )
    job.create_time.FromJsonString("2026-01-02T03:04:05.678Z")
    return job


def test_show_tells_all_about_a_job() -> None:
    lines = report.job_lines(_job())
    assert lines[0] == "jobs/one FAILED mine"
    for line in (
        "created 2026-01-02 03:04:05",
        "label team=quants",
        "epoch 4 of 150",
        "best epoch 3 val=0.9877 acc=0.712 bal=0.444 f1=0.333",
        "failure INVALID_DATA: NaN in row 3",
        "failure data.windows: has NaN",
        "warning FIELD_WITHOUT_EFFECT trainer.scheduler_t_0: set, but without effect",
    ):
        assert line in lines
    assert not [line for line in lines if line.startswith(("ended", "resumed"))]


def test_show_names_the_job_that_is_continued() -> None:
    job = _job()
    job.resumed_from = "jobs/old"
    assert report.job_lines(job)[1] == "resumed from jobs/old"


def test_show_marks_what_was_set_and_what_is_a_default() -> None:
    request_lines = [line.split() for line in report.job_lines(_job())]
    assert ["set", "trainer.scheduler_type", "SCHEDULER_TYPE_COSINE"] in request_lines
    assert ["set", "data.column.name", "label"] in request_lines
    assert ["set", "labels", "team=quants"] in request_lines
    assert ["default", "trainer.epochs", "150"] in request_lines
    assert ["default", "data.column.horizon", "0"] in request_lines
    assert ["default", "data.chronological.embargo_rows", "60"] in request_lines
    assert not [line for line in request_lines if "data.threshold.lower" in line]


def test_a_plan_tells_what_would_be_trained() -> None:
    answer = _job()
    answer.ClearField("name")
    answer.request.validate_only = True
    answer.set_fields.append("validate_only")
    answer.plan.started.CopyFrom(_started())
    answer.plan.started.train.rows = 160
    answer.plan.memory_estimate_bytes = 1_234_567_890
    lines = report.plan_lines(answer)
    assert lines[:7] == [
        "plan device=cpu precision=FP32 threads=1 deterministic=true",
        "plan parameters=1234 features=2",
        "plan windows train=100 validation=30 test=20 purged=7 unlabelled=3",
        "plan class c0 windows=10 balanced=20 weight=1.5",
        "plan class c1 windows=10 balanced=20 weight=1.5",
        "plan rows train=160 validation=0 test=0",
        "plan memory=1,234.6 MB (estimate)",
    ]
    assert "warning FIELD_WITHOUT_EFFECT trainer.scheduler_t_0: set, but without effect" in lines
    assert not [line for line in lines if "validate_only" in line]
    marked = [line.split() for line in lines]
    assert ["set", "data.column.name", "label"] in marked
    assert ["default", "trainer.epochs", "150"] in marked


def test_info_tells_versions_devices_and_queue() -> None:
    info = system_pb2.SystemInfo(
        version="1.0",
        contract_version=contract.contract_version(),
        contract_digest=contract.contract_digest(),
        torch_version="2.13",
        executor="local",
        running_jobs=1,
        max_concurrent_jobs=2,
        queued_jobs=3,
        max_queued_jobs=1000,
        threads_per_job=4,
    )
    info.devices.add(name="cpu", model="A\x1bB", memory_bytes=8_000_000_000)
    assert report.info_lines(info) == [
        "server 1.0",
        f"contract {contract.contract_version()}",
        "torch 2.13",
        "device cpu memory=8,000.0 MB A B",
        "executor local",
        "jobs running=1 of at most 2, queued=3 of at most 1000, threads for each=4",
    ]
    info.contract_digest = "other"
    assert "(not the same as this client's" in report.info_lines(info)[1]


def test_lists_are_aligned_rows() -> None:
    heading, *rows = report.job_rows([_job(), training_pb2.TrainingJob(name="jobs/two")])
    lines = report.table_lines(heading, rows)
    assert lines[1].split() == [
        "jobs/one", "FAILED", "4/150", "3", "0.333", "2026-01-02", "03:04:05", "mine",
    ]  # fmt: skip
    assert lines[0].index("STATE") == lines[1].index("FAILED")
    assert lines[2].split()[:3] == ["jobs/two", "UNSPECIFIED", "0/0"]
    model = model_pb2.Model(name="models/m", job=JOB, class_names=["a", "b"], test=_metrics())
    assert list(report.model_rows([model]))[1][:5] == ("models/m", JOB, "2", "0.333", "0.444")
    better = _metrics()
    better.macro_f1 = 0.9
    adjusted = model_pb2.Model(test=_metrics(), adjusted_test=better)
    assert list(report.model_rows([adjusted]))[1][3] == "0.900"
    assert report.model_line(model) == "models/m aliases=-"
    model.aliases[:] = ["latest", "production"]
    assert list(report.model_rows([model]))[1][-1] == "latest,production"
    assert report.model_line(model) == "models/m aliases=latest,production"


def test_a_dataset_is_a_line() -> None:
    dataset = dataset_pb2.Dataset(name="datasets/d", row_count=3, size_bytes=99)
    dataset.columns.add(name="a")
    assert report.dataset_line(dataset) == "datasets/d rows=3 columns=1 bytes=99"
    dataset.format = dataset_pb2.DATASET_FORMAT_CSV
    assert list(report.dataset_rows([dataset]))[1] == ("datasets/d", "CSV", "3", "1", "99", "")


def test_enum_values_a_newer_server_sends_are_shown_as_numbers() -> None:
    assert report.short_name(training_pb2.JobState, 4) == "SUCCEEDED"
    assert report.short_name(training_pb2.JobState, 99) == "99"
