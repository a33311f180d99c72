"""What the fork server imports once, so that a training process starts in milliseconds.

Imports only: a tensor operation or a CUDA call here would start threads or a context that a forked
child cannot use. One thing besides: a SIGTERM for the whole service is the server's to answer.
"""

from __future__ import annotations

import signal

import pyarrow
import torch

# torch.use_deterministic_algorithms imports this, which takes more than a second.
import torch._inductor

from trainwire_server.data import prepare, profile
from trainwire_server.training import bundle, fit, plan

__all__ = ["bundle", "fit", "plan", "prepare", "profile", "pyarrow", "torch"]

signal.signal(signal.SIGTERM, signal.SIG_IGN)
