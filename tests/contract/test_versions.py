"""Old and new: a contract one step newer than this one, on either end of the wire.

The newer contract is this one with a field more in every kind of place, an enum value more in every
enum and an event kind more. It is compiled at test time into a descriptor pool of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent import futures
from types import ModuleType
from typing import Any

import grpc
import pytest
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    empty_pb2,
    message_factory,
    struct_pb2,
    timestamp_pb2,
)
from google.protobuf.message import Message

from trainwire import contract
from trainwire.v1 import dataset_pb2, model_pb2, options_pb2, system_pb2, training_pb2
from trainwire_client import TrainingClient, errors, report
from trainwire_client.history import History

Refusal = Callable[[Callable[[], Any]], Any]
Handler = Callable[[Any, grpc.ServicerContext], Any]

NEWER = 90
"""Number of everything that the newer contract adds."""
NEWER_VERSION = "1000.0.0"
FIELD = descriptor_pb2.FieldDescriptorProto
KNOB = f"trainer.{NEWER}"


# ------------------------------------------------------------------------ the newer contract


def newer_file(module: ModuleType) -> descriptor_pb2.FileDescriptorProto:
    """A file of the contract, with more in it."""
    file = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    for enum in file.enum_type:
        prefix = enum.value[0].name.removesuffix("UNSPECIFIED")
        enum.value.add(name=f"{prefix}NEWER", number=NEWER)
    messages = {message.name: message for message in file.message_type}
    for name in ("TrainerParams", "ListTrainingsRequest", "GetDatasetRequest"):
        if name in messages:
            add_optional(messages[name], "newer_knob")
    for name in ("EpochCompleted", "TrainingJob", "Model", "Dataset", "SystemInfo"):
        if name in messages:
            add_field(messages[name], "newer_fact")
    if file.name == training_pb2.DESCRIPTOR.name:
        file.options.Extensions[options_pb2.contract_version] = NEWER_VERSION
        extend_oneofs(file, messages)
    return file


def add_field(message: descriptor_pb2.DescriptorProto, name: str) -> FIELD:
    added = message.field.add(name=name, number=NEWER, type=FIELD.TYPE_DOUBLE)
    added.label = FIELD.LABEL_OPTIONAL
    return added


def add_optional(message: descriptor_pb2.DescriptorProto, name: str) -> None:
    """With presence of its own, as every field of a request has it."""
    added = add_field(message, name)
    added.proto3_optional = True
    added.oneof_index = len(message.oneof_decl)
    message.oneof_decl.add(name=f"_{name}")


def extend_oneofs(
    file: descriptor_pb2.FileDescriptorProto, messages: dict[str, descriptor_pb2.DescriptorProto]
) -> None:
    """A kind of network and a kind of event more."""
    for holder, oneof in (("ModelParams", "architecture"), ("TrainingEvent", "event")):
        add_field(file.message_type.add(name=f"Newer{holder}"), "newer_fact")
        member = add_field(messages[holder], "newer")
        member.type = FIELD.TYPE_MESSAGE
        member.type_name = f".trainwire.v1.Newer{holder}"
        names = [declared.name for declared in messages[holder].oneof_decl]
        member.oneof_index = names.index(oneof)


def newer_pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for module in (descriptor_pb2, duration_pb2, empty_pb2, struct_pb2, timestamp_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(options_pb2.DESCRIPTOR.serialized_pb)
    for module in (training_pb2, dataset_pb2, model_pb2, system_pb2):
        pool.AddSerializedFile(newer_file(module).SerializeToString())
    return pool


POOL = newer_pool()


def newer(name: str) -> Any:
    """A message class of the newer contract."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"trainwire.v1.{name}"))


def as_newer(message: Message) -> Any:
    """The same message, as a program with the newer contract would have made it."""
    return newer(message.DESCRIPTOR.name).FromString(message.SerializeToString())


def test_the_newer_contract_has_more_and_nothing_less() -> None:
    trainer = newer("TrainerParams").DESCRIPTOR
    assert {f.name for f in trainer.fields} - {"newer_knob"} == {
        f.name for f in training_pb2.TrainerParams.DESCRIPTOR.fields
    }
    assert newer("TrainerParams")(newer_knob=0.0).HasField("newer_knob")
    scheduler = trainer.fields_by_name["scheduler_type"].enum_type
    assert scheduler.values_by_number[NEWER].name == "SCHEDULER_TYPE_NEWER"
    kinds = [
        field.name for field in newer("TrainingEvent").DESCRIPTOR.oneofs_by_name["event"].fields
    ]
    assert kinds[-1] == "newer"


# ------------------------------------------------------------------------ newer client, this server


def invoke(channel: grpc.Channel, rpc: str, request: Any, answer: str) -> Any:
    """Call a unary RPC as a program with the newer contract does."""
    call: Any = channel.unary_unary(
        f"/trainwire.v1.{rpc}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=newer(answer).FromString,
    )
    return call(request, timeout=30)


def submit(channel: grpc.Channel, request: Any) -> Any:
    return invoke(channel, "TrainingService/SubmitTraining", request, "TrainingJob")


@pytest.fixture
def newer_request(request_for: Callable[..., training_pb2.TrainingRequest]) -> Any:
    """A sound request, in the newer contract's classes, without anything new in it."""
    return as_newer(request_for(epochs=1))


def test_a_newer_client_that_uses_nothing_new_is_served(
    channel: grpc.Channel, newer_request: Any
) -> None:
    train = channel.unary_stream(
        "/trainwire.v1.TrainingService/Train",
        request_serializer=newer("TrainingRequest").SerializeToString,
        response_deserializer=newer("TrainingEvent").FromString,
    )
    kinds = [event.WhichOneof("event") for event in train(newer_request, timeout=60)]
    stored = [kind for kind in kinds if kind != "progress"]
    assert stored == ["queued", "started", "epoch", "succeeded"]


def set_newer_field(request: Any) -> None:
    request.trainer.newer_knob = 0.0


def set_newer_value(request: Any) -> None:
    request.trainer.scheduler_type = NEWER


def set_newer_member(request: Any) -> None:
    request.model.newer.SetInParent()


NEWS: list[tuple[Callable[[Any], None], str, str]] = [
    (set_newer_field, KNOB, "unknown field number 90 of trainwire.v1.TrainerParams"),
    (set_newer_value, "trainer.scheduler_type", "90 is not a value of SchedulerType; allowed: "),
    (set_newer_member, f"model.{NEWER}", "unknown field number 90 of trainwire.v1.ModelParams"),
]


@pytest.mark.parametrize(("change", "path", "words"), NEWS, ids=[path for _, path, _ in NEWS])
def test_what_only_the_newer_contract_has_is_refused_by_path(
    change: Callable[[Any], None],
    path: str,
    words: str,
    channel: grpc.Channel,
    newer_request: Any,
    refusal: Refusal,
) -> None:
    change(newer_request)
    refused = refusal(lambda: submit(channel, newer_request))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(refused.fields) == [path]
    assert refused.fields[path].startswith(words)
    assert refused.fields[path].endswith("the server is older")
    assert f"contract {contract.contract_version()} does not have it" in refused.fields[path]


def test_all_that_is_newer_is_named_at_once(
    channel: grpc.Channel, newer_request: Any, refusal: Refusal
) -> None:
    for change, _, _ in NEWS:
        change(newer_request)
    refused = refusal(lambda: submit(channel, newer_request))
    assert set(refused.fields) == {path for _, path, _ in NEWS}


@pytest.mark.parametrize(
    ("rpc", "request_type", "fields", "path"),
    [
        ("TrainingService/ListTrainings", "ListTrainingsRequest", {"newer_knob": 1.0}, str(NEWER)),
        ("TrainingService/ListTrainings", "ListTrainingsRequest", {"states": [NEWER]}, "states[0]"),
        ("DatasetService/GetDataset", "GetDatasetRequest", {"newer_knob": 1.0}, str(NEWER)),
    ],
)
def test_other_calls_name_what_is_newer_too(
    rpc: str,
    request_type: str,
    fields: dict[str, Any],
    path: str,
    channel: grpc.Channel,
    refusal: Refusal,
) -> None:
    request = newer(request_type)(**fields)
    if hasattr(request, "name"):
        request.name = "datasets/none"
    refused = refusal(lambda: invoke(channel, rpc, request, "Dataset"))
    assert list(refused.fields) == [path]
    assert refused.fields[path].endswith("the server is older")


def test_a_call_that_only_the_newer_contract_has_is_unimplemented(
    channel: grpc.Channel, newer_request: Any
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        invoke(channel, "TrainingService/NewerCall", newer_request, "TrainingJob")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_newer_client_can_ask_first(channel: grpc.Channel) -> None:
    request = newer("GetSystemInfoRequest")()
    info = invoke(channel, "SystemService/GetSystemInfo", request, "SystemInfo")
    assert contract.compare_versions(NEWER_VERSION, info.contract_version) == "older"
    assert info.newer_fact == 0.0


# ------------------------------------------------------------------------ this client, newer server


JOB = "jobs/newer"
UNNUMBERED = "jobs/unnumbered"
"""Its log begins with an event of a newer kind that, like `progress`, is not stored."""


def newer_job() -> Any:
    job = newer("TrainingJob")(name=JOB, newer_fact=0.5, contract_version=NEWER_VERSION)
    job.state = job.failure.reason = NEWER
    job.request.trainer.scheduler_type = NEWER
    job.request.trainer.newer_knob = 0.25
    job.request.trainer.epochs = 3
    job.warnings.add(reason=NEWER, message="something new")
    return job


def newer_log() -> list[Any]:
    """The log of a job, as the newer server tells it: sequence numbers 1 to 5."""
    event = newer("TrainingEvent")
    told = [event() for _ in range(5)]
    told[0].queued.queue_position = 1
    told[1].newer.newer_fact = 1.5
    told[2].epoch.epoch, told[2].epoch.newer_fact = 1, 2.5
    told[3].warning.reason, told[3].warning.message = NEWER, "something new"
    told[4].succeeded.best_epoch = 1
    for sequence, each in enumerate(told, start=1):
        each.job, each.sequence = JOB, sequence
    return told


def watch(request: Any, _: grpc.ServicerContext) -> Iterator[Any]:
    if request.name == UNNUMBERED:
        unnumbered = newer("TrainingEvent")(job=UNNUMBERED)
        unnumbered.newer.newer_fact = 3.5
        yield unnumbered
    yield from newer_log()[request.after_sequence :]


def info(_: Any, __: grpc.ServicerContext) -> Any:
    return newer("SystemInfo")(contract_version=NEWER_VERSION, newer_fact=1.0)


def listing(_: Any, __: grpc.ServicerContext) -> Any:
    return newer("ListTrainingsResponse")(jobs=[newer_job(), newer_job()])


CALLS: dict[str, tuple[str, Handler]] = {
    "TrainingService/GetTraining": ("GetTrainingRequest", lambda _, __: newer_job()),
    "TrainingService/ListTrainings": ("ListTrainingsRequest", listing),
    "SystemService/GetSystemInfo": ("GetSystemInfoRequest", info),
}
"""What the newer server answers to unary calls."""


def handlers() -> Iterator[grpc.GenericRpcHandler]:
    coders: Any = {"response_serializer": lambda message: message.SerializeToString()}
    for rpc, (request, handler) in CALLS.items():
        service, name = rpc.split("/")
        decode = newer(request).FromString
        unary = grpc.unary_unary_rpc_method_handler(handler, decode, **coders)
        yield grpc.method_handlers_generic_handler(f"trainwire.v1.{service}", {name: unary})
    decode = newer("WatchTrainingRequest").FromString
    stream = grpc.unary_stream_rpc_method_handler(watch, decode, **coders)
    yield grpc.method_handlers_generic_handler(
        "trainwire.v1.TrainingService", {"WatchTraining": stream}
    )


@pytest.fixture(scope="module")
def old_client() -> Iterator[TrainingClient]:
    """This client, connected to a server that speaks the newer contract."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(tuple(handlers()))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with TrainingClient(f"127.0.0.1:{port}", timeout=10, reconnect_for=5) as client:
        yield client
    server.stop(None).wait(10)


def test_a_watch_delivers_events_of_unknown_kinds_and_goes_on(old_client: TrainingClient) -> None:
    events = list(old_client.watch(JOB))
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["queued", None, "epoch", "warning", "succeeded"]
    assert events[3].warning.reason == NEWER


def test_nothing_of_an_event_is_lost_on_the_way(old_client: TrainingClient) -> None:
    assert [as_newer(event) for event in old_client.watch(JOB)] == newer_log()


def test_a_watch_goes_on_after_an_event_of_unknown_kind(old_client: TrainingClient) -> None:
    assert [event.sequence for event in old_client.watch(JOB, after_sequence=2)] == [3, 4, 5]


def test_unnumbered_events_of_unknown_kinds_are_delivered(old_client: TrainingClient) -> None:
    assert [event.sequence for event in old_client.watch(UNNUMBERED)] == [0, 1, 2, 3, 4, 5]


def test_what_is_newer_in_events_is_named(old_client: TrainingClient) -> None:
    named = [[each.field for each in contract.beyond(e)] for e in old_client.watch(JOB)]
    assert named == [[], ["90"], ["epoch.90"], ["warning.reason"], []]


def test_unknown_enum_values_of_a_job_are_numbers(old_client: TrainingClient) -> None:
    job = old_client.get(JOB)
    assert job.state == NEWER
    assert job.request.trainer.scheduler_type == NEWER
    assert job.request.trainer.epochs == 3
    field: Any = training_pb2.TrainerParams.DESCRIPTOR.fields_by_name["scheduler_type"]
    assert contract.value_text(field, job.request.trainer.scheduler_type) == str(NEWER)
    assert as_newer(job) == newer_job()


def test_what_is_newer_in_a_job_is_named(old_client: TrainingClient) -> None:
    found = {each.field: each.description for each in contract.beyond(old_client.get(JOB))}
    assert set(found) == {
        str(NEWER),
        "state",
        "request.trainer.scheduler_type",
        f"request.{KNOB}",
        "failure.reason",
        "warnings[0].reason",
    }
    assert all(text.endswith("the server is newer") for text in found.values())
    assert found["state"].startswith("90 is not a value of JobState")
    version = contract.contract_version()
    assert all(f"contract {version} does not have it" in text for text in found.values())


def test_lists_name_the_entry(old_client: TrainingClient) -> None:
    page = training_pb2.ListTrainingsResponse(jobs=old_client.list())
    assert "jobs[1].request.trainer.90" in [each.field for each in contract.beyond(page)]


def test_a_client_can_tell_that_the_server_is_newer(old_client: TrainingClient) -> None:
    told = old_client.info()
    mine = contract.contract_version()
    assert contract.compare_versions(mine, told.contract_version) == "newer"
    assert [each.field for each in contract.beyond(told)] == [str(NEWER)]


def test_a_request_from_a_newer_server_is_not_sent_back_with_holes(
    old_client: TrainingClient,
) -> None:
    """What the job was trained with includes a field that this client cannot read."""
    again = old_client.get(JOB).request
    with pytest.raises(errors.InvalidRequestError) as caught:
        old_client.submit(again)
    assert {KNOB, "trainer.scheduler_type"} <= {each.field for each in caught.value.violations}


def test_a_failure_for_an_unknown_reason_is_raised_with_its_number(
    old_client: TrainingClient,
) -> None:
    job = old_client.get(JOB)
    job.state, job.failure.message = training_pb2.JOB_STATE_FAILED, "something new went wrong"
    failed = errors.JobFailedError(job)
    assert failed.reason == str(NEWER)
    assert "something new went wrong" in str(failed)


def test_a_call_that_an_older_server_does_not_have_is_unimplemented(
    old_client: TrainingClient,
) -> None:
    """This server has no DatasetService: to the client it is one that is older."""
    with pytest.raises(errors.UnimplementedError):
        old_client.dataset("datasets/a")


def test_the_command_line_goes_on_after_an_event_of_unknown_kind(
    old_client: TrainingClient,
) -> None:
    history = History(old_client.get(JOB))
    ends = []
    for event in old_client.watch(JOB):
        history.add(event)
        ends.append(history.end)
    assert ends[:-1] == 4 * [None]
    assert history.state == "succeeded"


def test_the_command_line_names_what_it_cannot_read(old_client: TrainingClient) -> None:
    lines = [report.event_lines(event) for event in old_client.watch(JOB)]
    assert len(lines[1]) == 1
    assert "the server is newer" in lines[1][0]
    assert str(NEWER) in lines[3][0]


def test_the_command_line_says_which_side_is_older(old_client: TrainingClient) -> None:
    told = old_client.info()
    assert "the server is newer" in report.info_lines(told)[1]
    told.contract_version = "0.0.1"
    assert "the server is older" in report.info_lines(told)[1]
