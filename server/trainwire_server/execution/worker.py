"""What runs in a child process.

The server imports this module too, so whatever is heavy is imported inside the functions; the fork
server has it loaded already. grpc never gets here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from typing import cast

from google.protobuf import empty_pb2, wrappers_pb2

from trainwire.v1 import dataset_pb2, system_pb2, training_pb2
from trainwire_server.errors import BrokenUpload, JobFailure, StorageFull
from trainwire_server.execution.executor import Ingest, Plan, Task, Train
from trainwire_server.execution.frames import Connection

CANCEL = b"C"
DRAIN = b"D"
STORED = b"S"
NAME = "worker:"
"""What the names of these processes begin with; then comes the kind of the task, or `idle`."""
_EXIT_SERVER_GONE = 3
_EXIT_MEMORY = 4
_STALL_SECONDS = 3600.0
"""Neither reading the data nor a batch takes that long: a training that asks for no batch hangs."""


class _Orders:
    """What the server has told this process, and when the training last asked for it."""

    def __init__(self) -> None:
        self._heard = b""
        self._stored = 0
        self._asked = time.monotonic()
        self._changed = threading.Condition()

    def hear(self, order: bytes) -> None:
        """Take an order."""
        with self._changed:
            if order == STORED:
                self._stored += 1
            else:
                self._heard += order
            self._changed.notify_all()

    def wait_until_stored(self, epochs: int) -> None:
        """Wait until the server has stored so many epochs of this process, or wants it to stop."""
        with self._changed:
            while self._stored < epochs and not self._heard:
                self._changed.wait(1.0)
                self._asked = time.monotonic()

    def is_cancelled(self) -> bool:
        """Whether to stop now; asked before every batch."""
        self._asked = time.monotonic()
        return CANCEL in self._heard

    def is_draining(self) -> bool:
        """Whether to stop after this epoch."""
        return DRAIN in self._heard

    def is_stalled(self) -> bool:
        """Whether the training has stopped asking for batches."""
        return time.monotonic() - self._asked > _STALL_SECONDS


def main(end: socket.socket) -> None:
    """Wait for a task, run it and send what comes of it over `end`."""
    # Ctrl-C in a terminal reaches the whole process group, and systemd's SIGTERM the whole service;
    # the server decides what that means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = Connection(end)
    _name_process("idle")
    task = connection.hear_task()
    if task is None:  # the server is gone
        return
    _name_process(type(task).__name__.lower())
    orders = _Orders()
    threading.Thread(target=_listen, args=(connection, orders), daemon=True).start()
    if "torch" not in sys.modules:
        _log(connection, "torch was not preloaded: the fork server could not import it")
    try:
        _run(connection, task, orders)
    except Exception as error:
        _log(connection, traceback.format_exc())
        _send_failure(connection, task, _unexpected(error))


def _name_process(role: str) -> None:
    """Show what this process does in its name: `ps -o pid,comm`."""
    # A label for people: where /proc cannot be written to, work goes on without.
    with (
        contextlib.suppress(OSError),
        open("/proc/self/comm", "w", encoding="ascii") as name,
    ):
        name.write(NAME + role)


def _listen(connection: Connection, orders: _Orders) -> None:
    """Hear orders, and leave when the server is gone: nobody would take the result."""
    while order := connection.hear():
        orders.hear(order)
    os._exit(_EXIT_SERVER_GONE)


def _run(connection: Connection, task: Task, orders: _Orders) -> None:
    if isinstance(task, Train):
        _train(connection, task, orders)
    elif isinstance(task, Plan):
        _plan(connection, task)
    elif isinstance(task, Ingest):
        _ingest(connection, task)
    else:
        connection.send(_devices())


def _train(connection: Connection, task: Train, orders: _Orders) -> None:
    # Before CUDA starts; it never looks again.
    os.environ["CUDA_VISIBLE_DEVICES"] = task.visible_devices
    _keep_within_memory(connection, task)
    threading.Thread(target=_beat, args=(connection, task, orders), daemon=True).start()
    from trainwire_server.training import bundle, fit

    try:
        events = fit.fit(
            training_pb2.TrainingRequest.FromString(task.request),
            task.table,
            task.folder,
            task.threads,
            cancelled=orders.is_cancelled,
            draining=orders.is_draining,
            last_epoch=task.last_epoch,
            is_started=task.is_started,
        )
        epochs = 0
        for event in events:
            if event.HasField("succeeded"):
                connection.send(bundle.describe(task.folder / bundle.FOLDER))
            connection.send(event)
            if event.HasField("epoch"):
                # One of the two checkpoints kept must be of an epoch that the log has: whoever
                # takes over goes on from no later one.
                orders.wait_until_stored(epochs)
                epochs += 1
    except JobFailure as failure:
        _send_failure(connection, task, failure)
    except fit.Cancelled as end:
        stopped = training_pb2.JobCancelled(epochs_run=end.epochs_run, best_epoch=end.best_epoch)
        connection.send(training_pb2.TrainingEvent(cancelled=stopped))
    except fit.Drained:
        # Nothing to say: the job goes on from here under the next server.
        return


def _beat(connection: Connection, task: Train, orders: _Orders) -> None:
    """Send signs of life, unless the training hangs: then the server ends this process."""
    with contextlib.suppress(OSError):  # the server is gone, and `_listen` ends the process
        while True:
            if not orders.is_stalled():
                connection.send(empty_pb2.Empty())
            time.sleep(task.beat_seconds)


def _keep_within_memory(connection: Connection, task: Train) -> None:
    """Let a training allocate so much and no more.

    CUDA reserves address space by the terabyte, which no limit lets it: there a thread looks.
    """
    if not task.memory_bytes:
        return
    if not task.visible_devices:
        _limit_memory(task.memory_bytes)
        return
    limit = _resident_bytes() + task.memory_bytes
    threading.Thread(target=_watch_memory, args=(connection, task, limit), daemon=True).start()


def _watch_memory(connection: Connection, task: Train, limit: int) -> None:
    while _resident_bytes() <= limit:
        time.sleep(0.2)
    message = (
        f"the training process took more than the {task.memory_bytes} bytes of host memory allowed;"
        " try fewer rows or features"
    )
    failure = JobFailure(training_pb2.FAILURE_REASON_OUT_OF_MEMORY, message)
    _send_failure(connection, task, failure)
    os._exit(_EXIT_MEMORY)


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as numbers:
        return int(numbers.read().split()[1]) * resource.getpagesize()


def _plan(connection: Connection, task: Plan) -> None:
    # A dry run has no place on a GPU: there may be a job on each of them.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if task.memory_bytes:
        _limit_memory(task.memory_bytes)
    from trainwire_server.training import plan

    request = training_pb2.TrainingRequest.FromString(task.request)
    try:
        found, warnings = plan.plan(request, task.table, task.threads)
    except JobFailure as failure:
        connection.send(failure.to_proto())
        return
    for warning in warnings:
        connection.send(warning)
    connection.send(found)


def _ingest(connection: Connection, task: Ingest) -> None:
    from trainwire_server.data import profile
    from trainwire_server.data.durable import refusing_when_full

    _limit_memory(task.memory_bytes)
    if task.table_bytes:
        # Python has it that a write beyond is an error, and no signal.
        resource.setrlimit(resource.RLIMIT_FSIZE, (task.table_bytes, task.table_bytes))
    data_format = cast("dataset_pb2.DatasetFormat.ValueType", task.data_format)
    try:
        with refusing_when_full("the dataset"):
            dataset = profile.ingest(task.source, task.table, data_format)
        connection.send(dataset)
    except BrokenUpload as error:
        _refuse_upload(connection, error.message)
    except StorageFull as error:
        full = JobFailure(training_pb2.FAILURE_REASON_STORAGE_FULL, error.message)
        connection.send(full.to_proto())
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        message = (
            f"the table that is made of the upload would take more than {task.table_bytes} bytes, "
            "which is all that may be stored"
        )
        full = JobFailure(training_pb2.FAILURE_REASON_STORAGE_FULL, message)
        connection.send(full.to_proto())
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


def _refuse_upload(connection: Connection, message: str) -> None:
    failure = JobFailure(training_pb2.FAILURE_REASON_INVALID_DATA, message)
    connection.send(failure.to_proto())


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


def _send_failure(connection: Connection, task: Task, failure: JobFailure) -> None:
    if isinstance(task, Train):
        failed = training_pb2.JobFailed(failure=failure.to_proto())
        connection.send(training_pb2.TrainingEvent(failed=failed))
    else:
        connection.send(failure.to_proto())


def _log(connection: Connection, text: str) -> None:
    connection.send(wrappers_pb2.StringValue(value=text))
