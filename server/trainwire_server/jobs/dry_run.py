"""What a request comes to, found out by a child process that does not train."""

from __future__ import annotations

from pathlib import Path

from trainwire.v1 import training_pb2
from trainwire_server.errors import RequestError, Untrainable
from trainwire_server.execution.answers import ask
from trainwire_server.execution.executor import Executor, Plan


async def plan(
    executor: Executor, job: training_pb2.TrainingJob, table: Path, threads: int, memory: int
) -> None:
    """Fill in a job's `plan` and add to its `warnings`.

    Args:
        memory: bytes that the child process may allocate; 0 for as many as there are.

    Raises:
        Untrainable: the job would fail.
    """
    request = job.request.SerializeToString()
    task = Plan(request=request, table=table, threads=threads, memory_bytes=memory)
    answers = await ask(executor, task, "validate.worker_error")
    for message in answers.messages:
        if isinstance(message, training_pb2.TrainingPlan):
            job.plan.CopyFrom(message)
        elif isinstance(message, training_pb2.JobWarning):
            job.warnings.append(message)
        elif isinstance(message, training_pb2.Failure):
            raise _refusal(message)
    if not job.HasField("plan"):
        raise RequestError(f"the process of the dry run ended with exit status {answers.status}")


def _refusal(failure: training_pb2.Failure) -> RequestError:
    if failure.reason == training_pb2.FAILURE_REASON_INTERNAL:
        return RequestError(failure.message)
    return Untrainable(failure)
