"""What a machine at its limit raises is said as what it is; an internal error stays one. The messages are real ones."""

from __future__ import annotations

import errno

import pytest
import torch
from safetensors import SafetensorError

from stvit_cli.errors import UserError
from stvit_cli.utils import machine_failures
from stvit_cli.utils.machine_failures import Kind, describe, machine_failure, machine_failures_explained

IN_WORKER = "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File ...\n"
SHM = "unable to allocate shared memory(shm) for file </torch_4711_1_0>: Resource temporarily unavailable (11)"
ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."
)

RuntimeException = type("RuntimeException", (Exception,), {"__module__": "onnxruntime.capi.onnxruntime_pybind11_state"})

REAL: list[tuple[BaseException, Kind]] = [
    (MemoryError(), "memory"),
    (RuntimeError(ALLOCATOR), "memory"),
    (RuntimeError("could not create a primitive"), "memory"),
    (RuntimeError("could not create a memory object"), "memory"),
    (RuntimeError("std::bad_alloc"), "memory"),
    (RuntimeException("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: std::bad_alloc"), "memory"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
    (RuntimeError("unable to mmap 512 bytes from file <last.pth>: Cannot allocate memory (12)"), "memory"),
    (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "memory"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), "GPU memory"),
    (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), "GPU memory"),
    (RuntimeError("can't start new thread"), "threads"),
    (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "threads"),
    (RuntimeError(SHM), "shared memory"),
    (RuntimeError(f"{IN_WORKER}RuntimeError: {SHM}"), "shared memory"),
    (RuntimeError("unable to write to file </torch_7_1>: No space left on device (28)"), "shared memory"),
    (OSError(errno.EMFILE, "Too many open files", "img.png"), "open files"),
    (RuntimeError("received 0 items of ancdata"), "open files"),
    (OSError(errno.ENOSPC, "No space left on device", "run/best.safetensors"), "disk"),
    (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "disk"),
]


@pytest.mark.parametrize(("error", "kind"), REAL, ids=lambda value: str(value)[:40])
def test_it_is_told_what_ran_out_and_what_to_change(error: BaseException, kind: Kind) -> None:
    failure = machine_failure(error)
    assert failure is not None
    assert failure.kind == kind
    assert "Traceback" not in failure.said
    assert "\n" not in failure.said
    lines = describe(failure, "a lower --batch-size").splitlines()
    assert 2 <= len(lines) <= 3
    assert all(lines)
    assert ("a lower --batch-size" in lines[1]) == (kind in ("memory", "GPU memory"))


@pytest.mark.parametrize("kind", machine_failures.SIGNS)
def test_every_kind_has_a_real_message(kind: Kind) -> None:
    assert any(expected == kind for _, expected in REAL)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        KeyError("can't allocate memory"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
        UserError("x.png: No space left on device"),
        ImportError("No module named 'onnx'"),
    ],
    ids=repr,
)
def test_internal_errors_stay_internal_errors(error: BaseException) -> None:
    assert machine_failure(error) is None
    with pytest.raises(type(error)) as caught, machine_failures_explained():
        raise error
    assert caught.value is error


@pytest.mark.parametrize("is_near", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("could not create a primitive descriptor for the inner product forward propagation primitive."),
        RuntimeError("operator torchvision::nms does not exist"),
        SystemError("<built-in function load_dynamic> returned NULL without setting an exception"),
        SystemError("error return without exception set"),
    ],
    ids=str,
)
def test_what_a_library_does_not_have_is_a_lack_of_memory_only_near_the_limit(
    error: Exception, is_near: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_failures, "_near_memory_limit", lambda: is_near)
    assert (machine_failure(error) is not None) is is_near


def test_what_it_was_raised_from_counts() -> None:
    error = RuntimeError("the exporter failed")
    error.__cause__ = MemoryError()
    assert machine_failure(error) is not None


def test_in_a_block_it_becomes_a_user_error() -> None:
    expected = r"(?s)^Out of memory: .*\nUse a smaller image, or free memory"
    with pytest.raises(UserError, match=expected), machine_failures_explained("a smaller image"):
        raise RuntimeError(ALLOCATOR)
