"""Errors of a machine at its limit, told apart from internal errors by one table.

The errors come from Python, PyTorch, oneDNN, CUDA and safetensors. Few have a type of their own; most are known by what they say.
A DataLoader worker's come with its traceback in the message.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stvit_cli.errors import UserError
from stvit_cli.utils.memory import numbers, process_limit
from stvit_cli.utils.text import printable
from stvit_cli.utils.troubleshooting import Topic, see

Kind = Literal["memory", "GPU memory", "threads", "shared memory", "open files", "disk"]

SIGNS: dict[Kind, tuple[str, ...]] = {
    "GPU memory": (
        "CUDA out of memory",
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_ALLOC_FAILED",
        "HIP out of memory",
    ),
    # Before memory: PyTorch says of a full /dev/shm "unable to mmap 64 bytes from file </torch_1>: Cannot allocate memory".
    "shared memory": (
        "unable to allocate shared memory(shm)",
        "unable to open shared memory object",
        "unable to write to file </torch_",
        "unable to resize file </torch_",
        "from file </torch_",
        "insufficient shared memory (shm)",
    ),
    "threads": ("can't start new thread", "Resource temporarily unavailable", "Thread creation failed"),
    "open files": ("Too many open files", "received 0 items of ancdata"),
    "disk": (
        "No space left on device",
        "Disk quota exceeded",
        "File too large",
        "Input/output error",
        "Stale file handle",
        "Read-only file system",
    ),
    "memory": (
        "can't allocate memory",
        "not enough memory",
        "Cannot allocate memory",
        "bad_alloc",
        "bad allocation",
        "failed to map segment from shared object",
        "could not create a primitive",
        "could not create a memory",
        "could not create a scratchpad",
        "could not initialize a memory",
        "could not execute a primitive",
        "operator torchvision::",  # its library was not loaded, about which torchvision says nothing
        "returned NULL without setting an exception",  # Python's SystemError of an extension that found no memory
        "error return without exception set",
    ),
}

TOPICS: dict[Kind, Topic] = {"memory": "out-of-memory", "GPU memory": "out-of-memory", "shared memory": "shared-memory"}
"""Kinds of which the page on troubleshooting says more."""

# Of a product that oneDNN does not have, and of one that it had no memory to set up.
AMBIGUOUS = (
    "could not create a primitive descriptor",
    "could not execute a primitive",
    "torchvision::",
    "without setting an exception",
    "without exception set",
)
NEARLY = 0.6
"""Fraction of the limit from which a process counts as near it: the last request may have been large."""


@dataclass(frozen=True)
class MachineFailure:
    """A limit of the machine that an operation has met, and what the system said of it, in a line."""

    kind: Kind
    said: str

    @property
    def is_memory(self) -> bool:
        """Whether the memory of the machine or of a GPU did not suffice."""
        return self.kind in ("memory", "GPU memory")


def machine_failure(error: BaseException | None) -> MachineFailure | None:
    """Return the limit of the machine that an error, or one of its causes, is about; None for any other error."""
    seen = 0
    while error is not None and seen < 20:
        found = _failure_of(error)
        if found is not None:
            return found
        error, seen = error.__cause__, seen + 1
    return None


def _failure_of(error: BaseException) -> MachineFailure | None:
    # By name: this room imports neither torch nor what else is native.
    is_native = type(error).__name__ == "SafetensorError" or type(error).__module__.startswith(("torch.", "onnxruntime."))
    if not (is_native or isinstance(error, (MemoryError, OSError, RuntimeError, ImportError, SystemError))) or isinstance(
        error, UserError
    ):
        return None
    lines = str(error).strip().splitlines()
    for kind, signs in SIGNS.items():
        line = next((line for line in lines if any(sign in line for sign in signs)), None)
        if line is not None and (not any(sign in line for sign in AMBIGUOUS) or _near_memory_limit()):
            return MachineFailure(kind, _shortened(line))
    if isinstance(error, MemoryError):
        return MachineFailure("memory", _shortened(lines[-1] if lines else "Python had none left"))
    return None


def describe(failure: MachineFailure, less: str = "") -> str:
    """Say what ran out and what to change, in two to four lines.

    Args:
        failure: what ran out, and where.
        less: what makes this command need less memory, as in ``a lower --batch-size``.
    """
    open_files = process_limit("RLIMIT_NOFILE")
    use_less = f"Use {less}, or " if less else ""
    either = f"{use_less}free" if less else "Free"
    what, help_ = {
        "memory": ("Out of memory", f"{either} memory, or raise the limit of this process (ulimit -v, or the container's)."),
        "GPU memory": ("Out of memory on the GPU", f"{either} the GPU's memory, which other processes may hold (nvidia-smi)."),
        "threads": (
            "No further thread or process can be started",
            "Raise the limit (ulimit -u, or the container's limit of pids) or that of memory (ulimit -v), or use fewer:\n"
            "data.num_workers=0, and OMP_NUM_THREADS=1 in the environment.",
        ),
        "shared memory": (
            "The shared memory of the loader's workers (/dev/shm) is full or too small",
            "Use data.num_workers=0, which needs none, or give a container more: docker run --shm-size=8g, or --ipc=host.",
        ),
        "open files": (
            "Too many open files" + ("" if open_files is None else f": this process may have {open_files}"),
            "Raise the limit (ulimit -n 65536), or lower data.num_workers.",
        ),
        "disk": (
            "The disk cannot be used",
            "Make room on it, or mend what is said, or write to another one. What was saved is intact.",
        ),
    }[failure.kind]
    more = [see(TOPICS[failure.kind])] if failure.kind in TOPICS else []
    return "\n".join([f"{what}: {failure.said}.", help_, *more])


@contextmanager
def machine_failures_explained(less: str = "") -> Iterator[None]:
    """Turn the failures of the machine in a block into a UserError that says what to change; other errors pass through."""
    try:
        yield
    except Exception as error:
        failure = machine_failure(error)
        if failure is None:
            raise
        raise UserError(describe(failure, less)) from error


def _shortened(line: str) -> str:
    line = printable(line.strip())
    return (line if len(line) <= 200 else f"{line[:200]}...").rstrip(". ")


def _near_memory_limit() -> bool:
    """Whether this process has used most of the address space that it may have, or the machine of its memory."""
    try:
        status = numbers(Path("/proc/self/status"))
        machine = numbers(Path("/proc/meminfo"))
    except OSError:
        return False
    limit = process_limit("RLIMIT_AS")
    is_limited = limit is not None and status.get("VmSize", 0) * 1024 > NEARLY * limit
    return is_limited or machine.get("MemAvailable", 1) < 0.03 * machine.get("MemTotal", 1)
