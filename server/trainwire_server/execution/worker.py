"""What runs in a child process.

The server imports this module too, so whatever is heavy is imported inside the functions; the fork
server has it loaded already. grpc never gets here.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import threading
import traceback
from typing import cast

from google.protobuf import wrappers_pb2

from trainwire.v1 import dataset_pb2, system_pb2, training_pb2
from trainwire_server.errors import BrokenUpload, JobFailure
from trainwire_server.execution import frames
from trainwire_server.execution.executor import Ingest, Plan, Task, Train

CANCEL = b"C"
_EXIT_SERVER_GONE = 3


def main(connection: socket.socket, task: Task) -> None:
    """Run one task and send what comes of it over `connection`."""
    # Ctrl-C in a terminal reaches the whole process group; the server decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cancelled = threading.Event()
    threading.Thread(target=_listen, args=(connection, cancelled), daemon=True).start()
    if "torch" not in sys.modules:
        _log(connection, "torch was not preloaded: the fork server could not import it")
    try:
        _run(connection, task, cancelled)
    except Exception as error:
        _log(connection, traceback.format_exc())
        _send_failure(connection, task, _unexpected(error))


def _listen(connection: socket.socket, cancelled: threading.Event) -> None:
    """Hear of a cancel, and leave when the server is gone: nobody would take the result."""
    while True:
        try:
            heard = connection.recv(1)
        except OSError:
            heard = b""
        if not heard:
            os._exit(_EXIT_SERVER_GONE)
        cancelled.set()


def _run(connection: socket.socket, task: Task, cancelled: threading.Event) -> None:
    if isinstance(task, Train):
        _train(connection, task, cancelled)
    elif isinstance(task, Plan):
        _plan(connection, task)
    elif isinstance(task, Ingest):
        _ingest(connection, task)
    else:
        frames.send(connection, _devices())


def _train(connection: socket.socket, task: Train, cancelled: threading.Event) -> None:
    # Before CUDA starts; it never looks again.
    os.environ["CUDA_VISIBLE_DEVICES"] = task.visible_devices
    from trainwire_server.training import bundle, fit

    request = training_pb2.TrainingRequest.FromString(task.request)
    try:
        events = fit.fit(
            request, task.table, task.folder, task.threads, cancelled.is_set, task.last_epoch
        )
        for event in events:
            if event.HasField("succeeded"):
                frames.send(connection, bundle.describe(task.folder / bundle.FOLDER))
            frames.send(connection, event)
    except JobFailure as failure:
        _send_failure(connection, task, failure)
    except fit.Cancelled as end:
        stopped = training_pb2.JobCancelled(epochs_run=end.epochs_run, best_epoch=end.best_epoch)
        frames.send(connection, training_pb2.TrainingEvent(cancelled=stopped))


def _plan(connection: socket.socket, task: Plan) -> None:
    # A dry run has no place on a GPU: there may be a job on each of them.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from trainwire_server.training import plan

    request = training_pb2.TrainingRequest.FromString(task.request)
    try:
        found, warnings = plan.plan(request, task.table, task.threads)
    except JobFailure as failure:
        frames.send(connection, failure.to_proto())
        return
    for warning in warnings:
        frames.send(connection, warning)
    frames.send(connection, found)


def _ingest(connection: socket.socket, task: Ingest) -> None:
    from trainwire_server.data import profile

    _limit_memory(task.memory_bytes)
    data_format = cast("dataset_pb2.DatasetFormat.ValueType", task.data_format)
    try:
        frames.send(connection, profile.ingest(task.source, task.table, data_format))
    except BrokenUpload as error:
        _refuse_upload(connection, error.message)
    except MemoryError:
        _refuse_upload(
            connection, f"parsing it takes more memory than the {task.memory_bytes} bytes allowed"
        )


def _limit_memory(more_bytes: int) -> None:
    """Let this process allocate so much more than it has, and no more.

    RLIMIT_DATA, not RLIMIT_AS: address space is not memory, and mapped files are not allocated.
    """
    with open("/proc/self/status", encoding="ascii") as lines:
        data = next(line for line in lines if line.startswith("VmData:"))
    limit = int(data.split()[1]) * 1024 + more_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _refuse_upload(connection: socket.socket, message: str) -> None:
    failure = JobFailure(training_pb2.FAILURE_REASON_INVALID_DATA, message)
    frames.send(connection, failure.to_proto())


def _devices() -> system_pb2.SystemInfo:
    import torch

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cpu = system_pb2.DeviceInfo(name="cpu", model=_cpu_model(), memory_bytes=memory)
    gpus = [_gpu(i) for i in range(torch.cuda.device_count())]
    return system_pb2.SystemInfo(torch_version=torch.__version__, devices=[cpu, *gpus])


def _gpu(index: int) -> system_pb2.DeviceInfo:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return system_pb2.DeviceInfo(
        name=f"cuda:{index}", model=properties.name, memory_bytes=properties.total_memory
    )


def _cpu_model() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(models, "unknown")


def _unexpected(error: Exception) -> JobFailure:
    message = f"the training process met an unexpected error ({type(error).__name__}); "
    return JobFailure(
        training_pb2.FAILURE_REASON_INTERNAL, message + "the server's log has the details"
    )


def _send_failure(connection: socket.socket, task: Task, failure: JobFailure) -> None:
    if isinstance(task, Train):
        failed = training_pb2.JobFailed(failure=failure.to_proto())
        frames.send(connection, training_pb2.TrainingEvent(failed=failed))
    else:
        frames.send(connection, failure.to_proto())


def _log(connection: socket.socket, text: str) -> None:
    frames.send(connection, wrappers_pb2.StringValue(value=text))
