"""The real server, and real workers, that pause at named points of a job's life when told to.

TRAINWIRE_PAUSES names a folder. Where it has the pipes `POINT.reached` and `POINT.go`, whoever
comes to that point writes its process id to the first and waits until the second is opened; a file
`POINT.skip` says how many times it passes before that. The points are the keys of the two tables
below.
"""

from __future__ import annotations

import asyncio
import collections
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAUSES = Path(os.environ["TRAINWIRE_PAUSES"])
passed: collections.Counter[str] = collections.Counter()


def reach(point: str) -> None:
    """Pause here, if somebody waits for it."""
    reached, skip = PAUSES / f"{point}.reached", PAUSES / f"{point}.skip"
    if not reached.exists() or passed[point] < int(skip.read_text()):
        passed[point] += 1
        return
    # Opening one end of a pipe waits for the other.
    reached.write_text(f"{os.getpid()}\n")
    (PAUSES / f"{point}.go").read_text()


def pausing(point: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def pause(*args: Any, **kwargs: Any) -> Any:
        reach(point)
        return method(*args, **kwargs)

    return pause


def patch_server() -> None:
    from trainwire_server.data.catalog import Catalog
    from trainwire_server.execution.executor import Train
    from trainwire_server.execution.local import LocalExecutor

    start = LocalExecutor.start

    async def pause(self: Any, task: Any) -> Any:
        if isinstance(task, Train):
            await asyncio.to_thread(reach, "forking")
        return await start(self, task)

    LocalExecutor.start = pause  # type: ignore[method-assign]
    Catalog.keep_bundle = pausing("keeping", Catalog.keep_bundle)  # type: ignore[method-assign]
    Catalog.keep_upload = pausing("storing", Catalog.keep_upload)  # type: ignore[method-assign]


def patch_worker() -> None:
    from trainwire_server.training import bundle, fit

    module: Any = fit
    for point, name in (
        ("reading", "prepare"),
        ("batch", "clip_grad_norm_"),
        ("evaluating", "evaluate"),
    ):
        setattr(module, name, pausing(point, getattr(module, name)))
    bundle.write = pausing("bundling", bundle.write)
    replace = Path.replace

    def pause(self: Path, target: Path) -> Path:
        # A file is whole and synced, but not yet in its place.
        names = {"best.safetensors": "best", "metrics.json": "bundle-file"}
        in_folder = "checkpoint" if target.parent.name == "checkpoints" else "other"
        reach(names.get(target.name, in_folder))
        return replace(self, target)

    Path.replace = pause  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    from trainwire_server.__main__ import main

    patch_server()
    main()
elif __name__ == "__mp_main__":
    patch_worker()
