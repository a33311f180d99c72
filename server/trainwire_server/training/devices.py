"""Where and how torch computes: device, precision, reproducibility, memory."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainwire.contract import Violation
from trainwire.v1 import training_pb2
from trainwire_server.errors import JobFailure

# From malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BLOCK_BYTES = 2**17
_COLUMN_BYTES = 2**20
_LARGEST_HEAP_BLOCK_BYTES = 2**25
"""The most that glibc allows, and what it comes to by itself."""
_KEPT_BYTES = 2**29
"""Of what is free at the end of a heap; a training step's activations are fewer."""
# What torch says when host or GPU memory runs out and it has no exception type of its own for it.
_MEMORY_PHRASES = (
    "can't allocate memory",
    "std::bad_alloc",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    # oneDNN's words when it gets no memory for its own buffers.
    "could not create a primitive",
    "could not create a memory",
    "could not execute a primitive",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def find_device(wanted: training_pb2.Device.ValueType) -> torch.device:
    """The device to train on; AUTO is the first GPU if there is one that works, else the CPU.

    Raises:
        JobFailure: DEVICE_UNAVAILABLE, CUDA was asked for (or is there) but cannot be used.
    """
    available = torch.cuda.is_available()
    if wanted == training_pb2.DEVICE_CUDA and not available:
        raise _unavailable("this server has no CUDA device that torch can use")
    if wanted == training_pb2.DEVICE_CPU or not available:
        return torch.device("cpu")
    device = torch.device("cuda:0")
    try:
        torch.zeros(1, device=device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise _unavailable(f"{device} cannot be used: {error}") from error
    return device


def _unavailable(problem: str) -> JobFailure:
    field = Violation("resources.device", "allowed here: DEVICE_AUTO, DEVICE_CPU")
    message = f"{problem}; set resources.device to DEVICE_CPU, or repair the device"
    return JobFailure(training_pb2.FAILURE_REASON_DEVICE_UNAVAILABLE, message, (field,))


def find_precision(
    wanted: training_pb2.Precision.ValueType, device: torch.device
) -> training_pb2.Precision.ValueType:
    """FP32 or BF16; AUTO is BF16 on a GPU whose hardware has it, else FP32."""
    if wanted != training_pb2.PRECISION_AUTO:
        return wanted
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return training_pb2.PRECISION_BF16
    return training_pb2.PRECISION_FP32


def fix_arithmetic(deterministic: bool) -> None:
    """Set what torch keeps per process: reproducible kernels, full 32-bit products."""
    if deterministic:
        # cuBLAS reads this when it starts; without it its results vary between streams.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    # Fills every new tensor with NaN, to show code that reads what nobody wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    # cuDNN's default is TF32, whose 10-bit mantissa is not what PRECISION_FP32 promises.
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined] # made at run time
    # In torch 2.11 the line above does not reach these (pytorch/pytorch#179445).
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory in use so far: of torch's allocator on a GPU, else of the process (resident)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def memory_errors_explained() -> Iterator[None]:
    """Turns every form of "no memory left" within into JobFailure OUT_OF_MEMORY."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        # Not a smaller batch: what does not fit at once is computed in parts already.
        message = (
            f"memory ran out: {str(error).splitlines()[0] if str(error) else 'no details'}; try a "
            "smaller network, shorter windows or series, fewer columns or fewer rows"
        )
        fields = (
            Violation("model", "try a smaller network"),
            Violation("data", "try shorter windows or series, or fewer columns"),
        )
        raise JobFailure(training_pb2.FAILURE_REASON_OUT_OF_MEMORY, message, fields) from error


def is_memory_error(error: Exception) -> bool:
    """Whether an exception is one of the forms of "no memory left", of the host or the device."""
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or any(phrase in str(error) for phrase in _MEMORY_PHRASES)


def free_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more: cycles of objects, and what allocators keep."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        _unfragment_heap()


@contextmanager
def large_blocks_given_back() -> Iterator[None]:
    """Have glibc give blocks of a megabyte or more back to the system as soon as they are free.

    For work on whole columns, each of which would otherwise leave its size in the heap. Afterwards
    a training step's blocks stay there: they are needed again in the next one, and giving them back
    costs a page fault per 4 KiB, thousands a step.
    """
    libc = ctypes.CDLL(None)
    has_heap = hasattr(libc, "mallopt")  # other C libraries have no such store
    if has_heap:
        libc.mallopt(_M_MMAP_THRESHOLD, _COLUMN_BYTES)
    try:
        yield
    finally:
        if has_heap:
            libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_HEAP_BLOCK_BYTES)
            # Its own value follows the other one only until that is set.
            libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _unfragment_heap() -> None:
    """Have glibc give large blocks back to the system as soon as they are free.

    It keeps blocks of up to 32 MiB in its heap, where what is left of a step of another size does
    not fit together for the next. Slower, hence only for a process that has run out of memory.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # other C libraries have no such store
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGE_BLOCK_BYTES)
        libc.malloc_trim(0)
