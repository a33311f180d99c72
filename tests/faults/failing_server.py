"""A server with failures in it: the real one, with real functions wrapped.

Runs in place of `python -m trainwire_server`, with the same flags. Training processes import the
main module again, as `__mp_main__`: what is to fail in them is installed here as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import inspect
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial, wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any

PROGRAM = (__file__,)
_FAILURES = "TEST_FAILURES"
_CLOCK = "TEST_CLOCK"
_SYNCHRONOUS = "TEST_SYNCHRONOUS"
_ALONE = "TEST_ALONE"
_CONSTANTS = "TEST_CONSTANTS"


@dataclass(frozen=True)
class Failure:
    """A call that does not go well.

    Attributes:
        call: "module:function" or "module:Class.method".
        what: "die" (as by kill -9), "hang" (for ever), or "seize" (for ever, and no other thread of
            the process runs either).
        when: "before" or "after" the call.
        count: which of the calls that match, counted from 1 in each process.
        event: matches calls alone that have an event of this kind among their arguments.
        path: matches calls alone that have an argument with this text in it.
        process: "server" or "worker".
        mark: a file that is made when it happens; while it is there it does not happen again.
    """

    call: str
    what: str = "die"
    when: str = "after"
    count: int = 1
    event: str = ""
    path: str = ""
    process: str = "server"
    mark: str = ""

    def matches(self, arguments: Sequence[Any]) -> bool:
        """Whether it is one of the calls that count."""
        kinds = [a.WhichOneof("event") for a in arguments if type(a).__name__ == "TrainingEvent"]
        texts = [str(a) for a in arguments if isinstance(a, str | Path)]
        is_event = not self.event or self.event in kinds
        return is_event and (not self.path or any(self.path in text for text in texts))

    def happen(self) -> None:
        """Do it, unless it has happened already."""
        if self.mark:
            try:
                Path(self.mark).touch(exist_ok=False)
            except FileExistsError:
                return
        if self.what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.what == "hang":
            threading.Event().wait()
        else:
            # PyDLL keeps the interpreter's lock: nothing else runs.
            ctypes.PyDLL(None).sleep(3600)


def environment(
    *failures: Failure,
    clock: Path | None = None,
    synchronous: str = "",
    alone: Path | None = None,
    constants: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, str]:
    """The variables that make a server fail so.

    Args:
        clock: a file with the seconds by which the server's clock is wrong.
        synchronous: what SQLite is told in place of FULL.
        alone: a folder in which training processes see that each is alone with its job; see
            `overlaps`.
        constants: values for "module:name" in training processes.
    """
    found = {_FAILURES: json.dumps([asdict(failure) for failure in failures])}
    found |= {_CONSTANTS: json.dumps(dict(constants))} if constants else {}
    found |= {_CLOCK: str(clock)} if clock else {}
    found |= {_SYNCHRONOUS: synchronous} if synchronous else {}
    return found | ({_ALONE: str(alone)} if alone else {})


def overlaps(alone: Path) -> list[str]:
    """Jobs that had two processes at a time, and proof that somebody has looked."""
    assert list(alone.glob("*.lock")), "no training process has looked"
    return [path.stem for path in alone.glob("*.overlap")]


# ------------------------------------------------------------------------ in the server


def _install(process: str) -> None:
    for failure in json.loads(os.environ.get(_FAILURES, "[]")):
        if failure["process"] == process:
            _wrap(Failure(**failure))
    if process == "server" and (clock := os.environ.get(_CLOCK)):
        _shift_clock(Path(clock))
    if process == "server" and (synchronous := os.environ.get(_SYNCHRONOUS)):
        _loosen(synchronous)
    if process == "worker":
        for name, value in json.loads(os.environ.get(_CONSTANTS, "{}")).items():
            _replace(name, partial(_set_to, value))
    if process == "worker" and (alone := os.environ.get(_ALONE)):
        _see_that_it_is_alone(Path(alone))


def _set_to(value: float, _: Any) -> float:
    return value


def _replace(call: str, make: Callable[[Any], Any]) -> None:
    module, _, path = call.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    setattr(owner, name, make(getattr(owner, name)))


def _wrap(failure: Failure) -> None:
    calls = itertools.count(1)

    @contextlib.contextmanager
    def struck(arguments: Sequence[Any]) -> Iterator[None]:
        strikes = failure.matches(arguments) and next(calls) == failure.count
        if strikes and failure.when == "before":
            failure.happen()
        yield
        if strikes and failure.when == "after":
            failure.happen()

    def make(function: Any) -> Any:
        @wraps(function)
        async def waited_for(*args: Any, **kwargs: Any) -> Any:
            with struck([*args, *kwargs.values()]):
                return await function(*args, **kwargs)

        @wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            with struck([*args, *kwargs.values()]):
                return function(*args, **kwargs)

        return waited_for if inspect.iscoroutinefunction(function) else called

    _replace(failure.call, make)


def _shift_clock(file: Path) -> None:
    def offset() -> float:
        return float(file.read_text())

    def shifted(now: Callable[[], Any]) -> Callable[[], Any]:
        def stamp() -> Any:
            time = now()
            time.FromDatetime(time.ToDatetime() + timedelta(seconds=offset()))
            return time

        return stamp

    real = time.time
    time.time = lambda: real() + offset()
    _replace("trainwire_server.jobs.job:now", shifted)


def _loosen(synchronous: str) -> None:
    def make(connect: Callable[..., Any]) -> Callable[..., Any]:
        def loose(*args: Any) -> Any:
            connection = connect(*args)
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            return connection

        return loose

    _replace("trainwire_server.jobs.database:connect", make)


def _see_that_it_is_alone(folder: Path) -> None:
    def make(run: Callable[..., None]) -> Callable[..., None]:
        def locked(connection: Any, task: Any, orders: Any) -> None:
            if hasattr(task, "last_epoch"):
                job = task.folder.name
                # Held until the process is gone, however it goes.
                lock = (folder / f"{job}.lock").open("w")
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    (folder / f"{job}.overlap").touch()
            run(connection, task, orders)

        return locked

    _replace("trainwire_server.execution.worker:_run", make)


if __name__ == "__mp_main__":
    _install("worker")

if __name__ == "__main__":
    from trainwire_server.__main__ import main

    _install("server")
    main()
