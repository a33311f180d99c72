"""What the fork server imports once, so that a training process starts in milliseconds.

Imports only: a tensor operation or a CUDA call here would start threads or a context that a forked
child cannot use. One thing besides: a SIGTERM for the whole service is the server's to answer.
"""

from __future__ import annotations

import gc
import signal
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# NumPy imports this when a `numpy.ma` is first asked for, which pyarrow does.
import numpy.ma

# torch.onnx imports this with the first model that is exported.
import onnx
import pyarrow
import torch

# torch.use_deterministic_algorithms imports this, which takes more than a second.
import torch._inductor

from trainwire_server.data import prepare, profile
from trainwire_server.training import bundle, fit, plan

__all__ = ["bundle", "fit", "numpy", "onnx", "plan", "prepare", "profile", "pyarrow", "torch"]


class _Absent(MetaPathFinder, Loader):
    """Lets pandas be found and fail to load, as where it is not installed.

    Nothing here uses it, but pyarrow imports it at its first conversion to NumPy, in every child.
    """

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        """Answer for pandas alone."""
        return ModuleSpec(fullname, self) if fullname == "pandas" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Refuse."""
        raise ModuleNotFoundError(f"{spec.name} is not loaded here", name=spec.name)


signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.meta_path.insert(0, _Absent())
# A child's collector would write to every object that is here already, and so copy its memory.
gc.freeze()
