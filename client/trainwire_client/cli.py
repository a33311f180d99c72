"""The `trainwire` command: a thin layer over `TrainingClient`.

Exit status: 0 for success (of the job, where there is one), 1 for a job that did not succeed and
for errors, 2 for wrong usage and requests that break the contract, 130 after Ctrl-C.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Annotated, NoReturn, Protocol, Self, TypeVar

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console

from trainwire import contract, reference
from trainwire.v1 import dataset_pb2, model_pb2, training_pb2
from trainwire_client import health, predictions, report
from trainwire_client.client import DEFAULT_TARGET, TERMINAL_EVENTS, TrainingClient
from trainwire_client.errors import (
    InvalidRequestError,
    TrainwireError,
    UnreadableRequestError,
    invalid_request,
)
from trainwire_client.live import LiveView
from trainwire_client.request_file import read_request
from trainwire_client.requests import deletion, refuse_validate_only
from trainwire_client.series import LABEL, SPLIT, is_series_file
from trainwire_client.server_options import LOCAL_SERVER, Server, with_server_options

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_M = TypeVar("_M", bound=Message)
_T = TypeVar("_T")
_SIGNAL_SECONDS = 0.2
_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130


def complete_setting(incomplete: str) -> list[tuple[str, str]]:
    """What --set may go on with: paths of the contract, then the values of enums and booleans."""
    path, equals, _ = incomplete.partition("=")
    found = [
        parameter
        for parameter in contract.describe()
        if (parameter.path == path if equals else parameter.path.startswith(path))
    ]
    texts = _value_texts(found[0]) if len(found) == 1 else [_path_text(item) for item in found]
    return [(text, about) for text, about in texts if text.startswith(incomplete)]


def _path_text(parameter: contract.Parameter) -> tuple[str, str]:
    end = "." if contract.is_map(parameter.field) else "="
    return f"{parameter.path}{end}", parameter.param.description


def _value_texts(parameter: contract.Parameter) -> list[tuple[str, str]]:
    enum = parameter.field.enum_type
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED") if enum else ""
    values = [name.removeprefix(prefix) for name in parameter.enum_values]
    values += ["true", "false"] if parameter.type == "bool" else []
    if not values:
        return [_path_text(parameter)]
    return [(f"{parameter.path}={value}", parameter.param.description) for value in values]


def complete_state(incomplete: str) -> list[str]:
    """The states that --state takes."""
    enum = training_pb2.JobState.DESCRIPTOR
    names = [report.short_name(training_pb2.JobState, value.number) for value in enum.values[1:]]
    return [name for name in names if name.startswith(incomplete)]


Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object a line, with proto field names.")
]
RequestFile = Annotated[
    Path | None,
    typer.Option(
        "--request",
        metavar="FILE",
        help="A request to begin with, as JSON or protobuf text, such as a model's request.json; "
        "the other options override what it sets.",
    ),
]
Data = Annotated[
    list[Path] | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Parquet, CSV, Arrow or Feather file to upload; or labelled series (.ts, UCR .tsv), "
        "of which a training and a test file may be given: --data A_TRAIN.ts --data A_TEST.ts. "
        "Labelled series choose data.samples, the label column and data.split_column (or, from "
        "one file, data.stratified) where nothing else is said.",
    ),
]
DatasetName = Annotated[
    str | None,
    typer.Option("--dataset", metavar="NAME", help="Dataset that is on the server already."),
]
Label = Annotated[
    str | None, typer.Option("--label", metavar="COLUMN", help="Column that holds the label.")
]
Threshold = Annotated[
    str | None,
    typer.Option(
        "--threshold",
        metavar="PRICE_COLUMN,HORIZON,LOWER,UPPER",
        help="Label by the return over HORIZON rows: SELL below LOWER, BUY above UPPER.",
    ),
]
Group = Annotated[
    str | None,
    typer.Option("--group", metavar="COLUMN", help="Column that names the series of a row."),
]
Time = Annotated[
    str | None, typer.Option("--time", metavar="COLUMN", help="Column that orders the rows.")
]
DisplayName = Annotated[
    str | None, typer.Option("--name", metavar="DISPLAY_NAME", help="Name of the job for people.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        autocompletion=complete_setting,
        help="Any field of the request (see trainwire contract), as often as you like: "
        "--set trainer.epochs=20 --set trainer.scheduler_type=CONSTANT",
    ),
]
Detach = Annotated[
    bool, typer.Option("--detach", help="Submit, print the job's name and do not watch.")
]
Job = Annotated[str, typer.Argument(metavar="JOB", help="jobs/ID, or ID alone.")]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="models/ID, or ID alone; an alias is an ID too.")
]


class ReferenceFormat(StrEnum):
    """Formats of the reference page."""

    MARKDOWN = "markdown"
    JSON_SCHEMA = "json-schema"


# ------------------------------------------------------------------------ commands


def _print_version(wanted: bool) -> None:
    if wanted:
        _print(f"trainwire {version('trainwire')}")
        raise typer.Exit


@app.callback()
def tell_version(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Which one it is."),
    ] = False,
) -> None:
    """Train time-series classifiers on a trainwire server."""


@app.command()
@with_server_options
def train(
    data: Data = None,
    dataset: DatasetName = None,
    label: Label = None,
    threshold: Threshold = None,
    group: Group = None,
    time: Time = None,
    name: DisplayName = None,
    settings: Settings = None,
    request_file: RequestFile = None,
    detach: Detach = False,
    server: Server = LOCAL_SERVER,
    as_json: Json = False,
) -> None:
    """Submit a training and watch it to its end."""
    given = _given(dataset, label, threshold, group, time, name, settings)
    with _session(server) as client:
        request = _request(given, request_file, data or [])
        refuse_validate_only(request)
        job = client.submit(_with_data(client, request, data))
        _follow_unless(detach, client, job, server, as_json)


@app.command()
@with_server_options
def resume(
    job: Job,
    settings: Settings = None,
    detach: Detach = False,
    server: Server = LOCAL_SERVER,
    as_json: Json = False,
) -> None:
    """Continue a cancelled or failed job in a new one and watch that to its end.

    Only trainer.epochs, request_id, display_name and labels may be set to something else.
    """
    given = _pairs(settings or [], "--set")
    with _session(server) as client:
        new = client.resume(job, changes=_changes(given))
        _follow_unless(detach, client, new, server, as_json)


@app.command()
@with_server_options
def validate(
    data: Data = None,
    dataset: DatasetName = None,
    label: Label = None,
    threshold: Threshold = None,
    group: Group = None,
    time: Time = None,
    name: DisplayName = None,
    settings: Settings = None,
    request_file: RequestFile = None,
    server: Server = LOCAL_SERVER,
    as_json: Json = False,
) -> None:
    """Show what train would do, without training: counts, splits, memory, effective request."""
    given = _given(dataset, label, threshold, group, time, name, settings)
    with _session(server) as client:
        request = _request(given, request_file, data or [])
        answer = client.validate(_with_data(client, request, data))
        _print(answer if as_json else "\n".join(report.plan_lines(answer)))


@app.command()
@with_server_options
def watch(
    job: Job,
    after: Annotated[
        int, typer.Option(min=0, metavar="N", help="Number of the last event already seen.")
    ] = 0,
    server: Server = LOCAL_SERVER,
    as_json: Json = False,
) -> None:
    """Watch a job to its end."""
    with _session(server) as client:
        _follow(client, client.get(job), after, server, as_json)


@app.command()
@with_server_options
def jobs(
    states: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            metavar="STATE",
            autocompletion=complete_state,
            help="Only jobs in this state (RUNNING, say); given twice, in either.",
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--label", metavar="KEY=VALUE", help="Only jobs with this label; given twice, both."
        ),
    ] = None,
    server: Server = LOCAL_SERVER,
    as_json: Json = False,
) -> None:
    """List jobs, most recently updated first."""
    given = [(f"labels.{key}", value) for key, value in _pairs(labels or [], "--label")]
    given += [("states", ",".join(states))] if states else []
    with _session(server) as client:
        wanted = training_pb2.ListTrainingsRequest()
        _refuse(_assign(wanted, given))
        found = client.list(states=wanted.states, labels=wanted.labels)
        _print_all(found, report.job_rows, as_json)


@app.command()
@with_server_options
def show(job: Job, server: Server = LOCAL_SERVER, as_json: Json = False) -> None:
    """Show all about a job: state, times, progress, failure, effective request."""
    with _session(server) as client:
        found = client.get(job)
        _print(found if as_json else "\n".join(report.job_lines(found)))


@app.command()
@with_server_options
def cancel(job: Job, server: Server = LOCAL_SERVER, as_json: Json = False) -> None:
    """Cancel a job; a finished one stays as it is."""
    with _session(server) as client:
        found = client.cancel(job)
        state = report.short_name(training_pb2.JobState, found.state)
        _print(found if as_json else f"{found.name} {state}")


@app.command()
@with_server_options
def upload(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Parquet, CSV, Arrow or Feather file, or labelled series (.ts, UCR .tsv), of "
            "which a training and a test file may be given: A_TRAIN.ts A_TEST.ts.",
        ),
    ],
    server: Server = LOCAL_SERVER,
    as_json: Json = False,
) -> None:
    """Upload a file as a dataset; data that are on the server already are not sent again."""
    with _session(server) as client:
        dataset = _upload(client, files)
        _print(dataset if as_json else report.dataset_line(dataset))


@app.command()
@with_server_options
def datasets(server: Server = LOCAL_SERVER, as_json: Json = False) -> None:
    """List datasets, newest first."""
    with _session(server) as client:
        _print_all(client.datasets(), report.dataset_rows, as_json)


@app.command()
@with_server_options
def models(server: Server = LOCAL_SERVER, as_json: Json = False) -> None:
    """List models, newest first."""
    with _session(server) as client:
        _print_all(client.models(), report.model_rows, as_json)


@app.command()
@with_server_options
def download(
    model: Model,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to write the files; made if need be.")
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there already.")
    ] = False,
    server: Server = LOCAL_SERVER,
    as_json: Json = False,
) -> None:
    """Write the files of a model into a directory."""
    with _session(server) as client:
        found = client.model(model)
        client.download(found, directory, overwrite=overwrite)
        paths = "\n".join(str(directory / file.name) for file in found.files)
        _print(found if as_json else paths)


@app.command()
def predict(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Directory of a downloaded model.")
    ],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Parquet, CSV, Arrow or Feather file, or labelled series (.ts, UCR .tsv), with "
            "the columns that the model was trained on.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Write all to FILE: .csv or .parquet."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace FILE if it is there already.")
    ] = False,
    target: Annotated[
        str, typer.Option("--target", envvar="TRAINWIRE_TARGET", hidden=True)
    ] = DEFAULT_TARGET,  # taken like everywhere, not needed: no server is asked
    as_json: Json = False,
) -> None:
    """Predict classes for the rows of a file; needs no server."""
    with _errors_told():
        _check_output(output, overwrite)
        found = predictions.predict(bundle, data)
        if output is not None:
            predictions.write(found.table, output)
        if as_json:
            for row in predictions.json_rows(found.table):
                _print(json.dumps(row, ensure_ascii=False))
        else:
            _print("\n".join(predictions.report_lines(found)))
        if skipped := predictions.skipped_text(found):
            _complain(skipped)


@app.command("alias")
@with_server_options
def set_alias(
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="Such as production.")],
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="The model that is to have it: models/ID, or ID."),
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Take the alias away from the model that has it.")
    ] = False,
    server: Server = LOCAL_SERVER,
    as_json: Json = False,
) -> None:
    """Give a model a second name: models/ALIAS; the model that had it loses it."""
    if (model is None) != remove:
        raise typer.BadParameter("say either MODEL or --remove", param_hint="MODEL")
    with _session(server) as client:
        if model is None:
            client.remove_alias(alias)
            _print(model_pb2.SetModelAliasRequest(alias=alias) if as_json else f"removed {alias}")
        else:
            found = client.set_alias(alias, model)
            _print(found if as_json else report.model_line(found))


@app.command()
@with_server_options
def delete(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="jobs/ID, datasets/ID or models/ID.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    server: Server = LOCAL_SERVER,
    as_json: Json = False,
) -> None:
    """Delete finished jobs, datasets and models, in this order; stops where one is refused."""
    with _session(server) as client:
        _check_names(names)
        if not yes:
            _confirm(f"Delete {', '.join(names)}?")
        for name in names:
            client.delete(name)
            _print(deletion(name) if as_json else f"deleted {name}")


@app.command()
@with_server_options
def info(server: Server = LOCAL_SERVER, as_json: Json = False) -> None:
    """Show the server's versions, devices and queue."""
    with _session(server) as client:
        found = client.info()
        _print(found if as_json else "\n".join(report.info_lines(found)))


@app.command("health")
@with_server_options
def check_health(
    seconds: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long it may take.")
    ] = 5.0,
    server: Server = LOCAL_SERVER,
    as_json: Json = False,
) -> None:
    """Ask whether the server takes calls: once; the exit status is 0 if it does."""
    with _errors_told():
        found = health.check(server.target, server.security(), seconds)
        status = type(found).ServingStatus.Name(found.status)
        _print(found if as_json else status)
    if status != "SERVING":
        raise typer.Exit(_FAILED)


@app.command("contract")
def print_contract(
    form: Annotated[
        ReferenceFormat, typer.Option("--format", help="Form of the reference.")
    ] = ReferenceFormat.MARKDOWN,
    target: Annotated[
        str, typer.Option("--target", envvar="TRAINWIRE_TARGET", hidden=True)
    ] = DEFAULT_TARGET,  # taken like everywhere, not needed: the contract is built in
    as_json: Annotated[bool, typer.Option("--json", help="The JSON Schema on one line.")] = False,
) -> None:
    """Print every field of every request: type, default, range, unit, meaning."""
    if as_json:
        _print(json.dumps(reference.json_schema(), ensure_ascii=False))
    elif form is ReferenceFormat.MARKDOWN:
        _print(reference.markdown().rstrip("\n"))
    else:
        _print(reference.json_text().rstrip("\n"))


# ------------------------------------------------------------------------ the request


def _given(
    dataset: str | None,
    label: str | None,
    threshold: str | None,
    group: str | None,
    time: str | None,
    name: str | None,
    settings: list[str] | None,
) -> list[tuple[str, str]]:
    """The fields that the options set, each with its path."""
    flags = {
        "dataset": _full_name(dataset),
        "data.column.name": label,
        "data.windows.group_column": group,
        "data.windows.time_column": time,
        "display_name": name,
    }
    given = [(path, value) for path, value in flags.items() if value is not None]
    return [*given, *_threshold_fields(threshold), *_pairs(settings or [], "--set")]


def _full_name(dataset: str | None) -> str | None:
    return f"datasets/{dataset}" if dataset and "/" not in dataset else dataset


def _threshold_fields(text: str | None) -> list[tuple[str, str]]:
    """The fields that --threshold sets; the column's name may hold commas."""
    if text is None:
        return []
    values = text.rsplit(",", 3)
    if len(values) != 4:
        raise typer.BadParameter(
            f"{text!r} has {len(values)} of 4 parts; allowed: PRICE_COLUMN,HORIZON,LOWER,UPPER",
            param_hint="--threshold",
        )
    names = ("price_column", "horizon", "lower", "upper")
    return [(f"data.threshold.{name}", value) for name, value in zip(names, values, strict=True)]


def _pairs(texts: Iterable[str], option: str) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            form = "PATH=VALUE" if option == "--set" else "KEY=VALUE"
            raise typer.BadParameter(f"{text!r} has no =; allowed: {form}", param_hint=option)
        pairs.append((name.strip(), value))
    return pairs


def _request(
    given: list[tuple[str, str]], file: Path | None, data: list[Path]
) -> training_pb2.TrainingRequest:
    """The request that file, options and data describe, checked before anything is uploaded.

    Raises:
        UnreadableRequestError: the file is no request.
        InvalidRequestError: everything that is wrong with the request.
    """
    request = read_request(file) if file else training_pb2.TrainingRequest()
    wrong = _assign(request, given)
    wrong += _displaced(request, [path for path, _ in given], wrong)
    _choose_for_series(request, data)
    if data:
        if "dataset" in dict(given):
            wrong.append(contract.Violation("dataset", "--data and --dataset exclude each other"))
        request.ClearField("dataset")
    named = {violation.field for violation in wrong}
    named |= {"dataset"} if data else set()
    wrong += [found for found in contract.violations(request) if found.field not in named]
    _refuse(wrong)
    return request


def _choose_for_series(request: training_pb2.TrainingRequest, data: list[Path]) -> None:
    """What files of labelled series leave no doubt about, where nothing else was chosen.

    Their rows are in no order of time (often in that of the classes), so that a split by order
    would be wrong.
    """
    if not data or not all(is_series_file(path) for path in data):
        return
    chosen = request.data
    if chosen.WhichOneof("layout") == "windows":
        return
    chosen.samples.SetInParent()
    if chosen.WhichOneof("target") in (None, "column") and not chosen.column.HasField("name"):
        chosen.column.name = LABEL
    split = chosen.WhichOneof("split")
    if split is None and len(data) == 1:
        chosen.stratified.SetInParent()
    elif split in (None, "split_column") and not chosen.split_column.HasField("name"):
        chosen.split_column.name = SPLIT


def _changes(given: list[tuple[str, str]]) -> training_pb2.TrainingRequest:
    """What is to be different in a resumed job, checked.

    Raises:
        InvalidRequestError: everything that is wrong with it, by the path in the request.
    """
    request = training_pb2.ResumeTrainingRequest()
    wrong = _assign(request, [(f"changes.{path}", value) for path, value in given])
    named = {violation.field for violation in wrong} | {"name"}
    wrong += [found for found in contract.violations(request) if found.field not in named]
    _refuse(wrong)
    return request.changes


def _assign(message: Message, given: list[tuple[str, str]]) -> list[contract.Violation]:
    """Set the fields; what could not be set is returned."""
    wrong = list(_twice(path for path, _ in given))
    for path, value in given:
        try:
            contract.assign(message, path, value)
        except contract.ContractError as error:
            wrong += error.violations
    return wrong


def _refuse(wrong: list[contract.Violation]) -> None:
    if wrong:
        raise invalid_request(wrong)


def _twice(paths: Iterable[str]) -> Iterator[contract.Violation]:
    seen: set[str] = set()
    for path in paths:
        if path in seen:
            yield contract.Violation(path, "given twice")
        seen.add(path)


def _displaced(
    request: training_pb2.TrainingRequest, paths: list[str], wrong: list[contract.Violation]
) -> list[contract.Violation]:
    """Fields that a later choice of another oneof member threw out again."""
    known = {violation.field for violation in wrong}
    return [
        contract.Violation(path, "excluded by another option, which chooses otherwise")
        for path in paths
        if path not in known and not contract.is_there(request, path)
    ]


def _with_data(
    client: TrainingClient, request: training_pb2.TrainingRequest, data: list[Path] | None
) -> training_pb2.TrainingRequest:
    if data:
        request.dataset = _upload(client, data).name
    return request


def _upload(client: TrainingClient, files: list[Path]) -> dataset_pb2.Dataset:
    """Upload with progress on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        return client.upload(files)

    def tell(sent: int, size: int) -> None:
        sys.stderr.write(f"\ruploading {sent / 1e6:,.1f} of {size / 1e6:,.1f} MB")
        sys.stderr.flush()

    try:
        return client.upload(files, on_progress=tell)
    finally:
        sys.stderr.write("\r\x1b[K")


def _check_output(output: Path | None, overwrite: bool) -> None:
    """Refuse what cannot be written before anything is computed."""
    if output is None:
        return
    if output.suffix.lower() not in predictions.SUFFIXES:
        allowed = " or ".join(predictions.SUFFIXES)
        raise typer.BadParameter(f"{output}; allowed: a name in {allowed}", param_hint="--output")
    if output.exists() and not overwrite:
        raise FileExistsError(f"already there: {output} (replace it: --overwrite)")


# ------------------------------------------------------------------------ deleting


def _check_names(names: Iterable[str]) -> None:
    """Refuse what cannot be deleted before anything is."""
    wrong: list[contract.Violation] = []
    for name in names:
        try:
            deletion(name)
        except InvalidRequestError as error:
            wrong += error.violations
    _refuse(wrong)


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal to ask on: say --yes", param_hint="--yes")
    typer.confirm(question, abort=True, err=True)


# ------------------------------------------------------------------------ watching


class _View(Protocol):
    """Shows events; closes with the watch."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
    def show(self, event: training_pb2.TrainingEvent) -> None: ...


class _JsonLines:
    """Every event as a JSON object on a line of its own."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Every line is out."""

    def show(self, event: training_pb2.TrainingEvent) -> None:
        _print(event)


def _view(job: training_pb2.TrainingJob, as_json: bool) -> _View:
    if as_json:
        return _JsonLines()
    console = Console(highlight=False)
    if sys.stdout.isatty() and not console.is_dumb_terminal and "utf" in console.encoding:
        return LiveView(console, job)
    return report.PlainReport(job, _print)


def _follow_unless(
    detach: bool,
    client: TrainingClient,
    job: training_pb2.TrainingJob,
    server: Server,
    as_json: bool,
) -> None:
    """Show a job from its first event on, or only its name."""
    if detach:
        _print(job if as_json else job.name)
    else:
        _follow(client, job, 0, server, as_json)


def _follow(
    client: TrainingClient,
    job: training_pb2.TrainingJob,
    after: int,
    server: Server,
    as_json: bool,
) -> None:
    """Show the events of a job; exits 1 unless it succeeded."""
    seen = after
    end = ""
    try:
        with _view(job, as_json) as view:
            for event in _events(client, job, after):
                view.show(event)
                seen = max(seen, event.sequence)
                end = event.WhichOneof("event") or ""
    except KeyboardInterrupt:
        _say_how_to_go_on(server, job.name, seen)
        raise typer.Exit(_INTERRUPTED) from None
    if end not in TERMINAL_EVENTS:
        # The terminal event was among those already seen.
        state = client.get(job).state
        end = report.short_name(training_pb2.JobState, state).lower()
    if end != "succeeded":
        raise typer.Exit(_FAILED)


def _events(
    client: TrainingClient, job: training_pb2.TrainingJob, after: int
) -> Iterator[training_pb2.TrainingEvent]:
    """The events of a job, fetched in a thread of their own.

    Ctrl-C interrupts the main thread wherever it is. Inside gRPC that is sometimes swallowed (in a
    finalizer) or leaves a channel that never closes; waiting for a queue it is neither.
    """
    fetched: SimpleQueue[training_pb2.TrainingEvent | Exception | None] = SimpleQueue()

    def fetch() -> None:
        try:
            for event in client.watch(job, after):
                fetched.put(event)
            fetched.put(None)
        except Exception as error:  # raised again where the events are read
            fetched.put(error)

    threading.Thread(target=fetch, name="watch", daemon=True).start()
    while (item := _next_of(fetched)) is not None:
        if isinstance(item, Exception):
            raise item
        yield item


def _next_of(queue: SimpleQueue[_T]) -> _T:
    """The next item; wakes up now and then, for a signal just before a wait does not end it."""
    while True:
        with suppress(Empty):
            return queue.get(timeout=_SIGNAL_SECONDS)


def _say_how_to_go_on(server: Server, job: str, seen: int) -> None:
    where = server.arguments()
    _complain(
        f"stopped watching; {job} goes on\n"
        f"  watch again: trainwire watch {job} --after {seen}{where}\n"
        f"  cancel:      trainwire cancel {job}{where}"
    )


# ------------------------------------------------------------------------ output


@contextmanager
def _session(server: Server) -> Iterator[TrainingClient]:
    """A client whose errors end the command with one clear block on stderr."""
    with _errors_told(), server.client() as client:
        yield client


@contextmanager
def _errors_told() -> Iterator[None]:
    try:
        yield
    except (InvalidRequestError, UnreadableRequestError) as error:
        _fail(str(error), _USAGE)
    except (TrainwireError, OSError) as error:
        _fail(str(error), _FAILED)
    except KeyboardInterrupt:
        _fail("interrupted", _INTERRUPTED)


def _fail(message: str, status: int) -> NoReturn:
    _complain(f"trainwire: {message}")
    raise typer.Exit(status) from None


def _complain(text: str) -> None:
    typer.echo("\n".join(report.printable(line) for line in text.splitlines()), err=True)


def _print(item: Message | str) -> None:
    """One item on stdout, at once; messages as JSON, zeros included."""
    if isinstance(item, Message):
        plain = MessageToDict(
            item, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        item = json.dumps(plain, ensure_ascii=False)
    typer.echo(item)


def _print_all(
    messages: Iterable[_M],
    rows: Callable[[Iterable[_M]], Iterable[tuple[str, ...]]],
    as_json: bool,
) -> None:
    if as_json:
        for message in messages:
            _print(message)
        return
    heading, *lines = rows(messages)
    for line in report.table_lines(heading, lines):
        _print(line)
