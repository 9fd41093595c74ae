"""Windows and macOS, faked: what these systems lack is taken from Python before `stvit_cli` is imported.

    python tests/helpers/other_system.py FOLDER win32 darwin

The libraries are imported first, as those of Linux, then a process is forked for each system. It imports the package, predicts
with packaged weights, trains for two steps without workers, and finds its run directory locked. No file name of these systems,
no other newline and no other default of theirs is faked. Not a test; `tests/test_other_systems.py` runs it.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import importlib
import io
import os
import pathlib
import signal
import stat
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

LIBRARIES = (
    *("torch", "torchvision", "timm", "timm.optim", "timm.data", "timm.scheduler", "matplotlib.pyplot", "scipy.stats"),
    *(
        "typer",
        "typer.testing",
        "rich.progress",
        "rich.table",
        "pydantic",
        "yaml",
        "einops",
        "safetensors.torch",
        "pyarrow.parquet",
    ),
)
"""Linux's, and imported as such."""
IMAGE = pathlib.Path(__file__).parents[1] / "images" / "digit-3.png"
LACKS_OF_BOTH = ["os.sched_getaffinity", "os.sched_setaffinity", "os.posix_fadvise", "os.memfd_create", "os.sendfile"]
LACKS: dict[str, list[str]] = {
    "darwin": LACKS_OF_BOTH,
    "win32": [
        *LACKS_OF_BOTH,
        *(f"os.{name}" for name in ("fork", "register_at_fork", "killpg", "nice", "pread", "pwrite", "getloadavg", "statvfs")),
        *(f"os.{name}" for name in ("geteuid", "getuid", "getgid", "getpgid", "setsid", "mkfifo", "chown", "sysconf")),
        *(f"os.{name}" for name in ("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_DSYNC", "ST_NOEXEC")),
        *(f"signal.{name}" for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGKILL", "SIGALRM", "SIGPIPE", "SIGQUIT")),
        *(f"signal.{name}" for name in ("alarm", "setitimer", "pthread_sigmask", "pthread_kill", "SIG_BLOCK", "SIG_UNBLOCK")),
        *("signal.SIG_SETMASK", "signal.sigwait", "signal.siginterrupt"),
    ],
}
MODULES_MISSING = {"darwin": (), "win32": ("resource", "fcntl", "pwd", "grp", "termios", "posix_ipc")}
TRAIN = [
    *("train", "--recipe", "quickstart", "data.kind=imagefolder", "data.image_size=32", "data.num_workers=0", "schedule.steps=2"),
    *("schedule.warmup_epochs=0", "train.global_batch_size=4", "train.device=cpu", "train.precise_bn_steps=0"),
]


def become(system: str) -> None:
    """Take away what a system lacks, and let what Windows refuses fail."""
    for name in LACKS[system]:
        module, _, attribute = name.partition(".")
        vars(sys.modules[module]).pop(attribute, None)
    for name in MODULES_MISSING[system]:
        sys.modules[name] = None  # type: ignore[assignment]  # its import fails
    _hide_procfs()
    if system == "win32":
        os.fsync = _fsync_of_windows
        sys.modules["msvcrt"] = _msvcrt()
    sys.platform = system


def _hide_procfs() -> None:
    """There is no /proc, no /sys and no /dev/shm outside Linux."""

    def is_hidden(path: object) -> bool:
        return isinstance(path, (str, os.PathLike)) and str(path).startswith(("/proc", "/sys", "/dev/shm"))

    def without(function: Callable[..., Any]) -> Callable[..., Any]:
        def checked(path: Any, *args: Any, **options: Any) -> Any:
            if is_hidden(path):
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
            return function(path, *args, **options)

        return checked

    builtins.open = io.open = without(io.open)
    os.stat = without(os.stat)


def _fsync_of_windows(handle: int, flush: Callable[[int], None] = os.fsync, flags: Callable[..., int] = fcntl.fcntl) -> None:
    if stat.S_ISDIR(os.fstat(handle).st_mode):
        raise PermissionError(errno.EACCES, "Permission denied")
    if flags(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    flush(handle)


def _msvcrt() -> ModuleType:
    """Windows' module of locks, on top of flock: a lock that another has is a PermissionError there."""
    module = ModuleType("msvcrt")

    def locking(handle: int, mode: int, length: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    vars(module).update(locking=locking, LK_NBLCK=2)
    return module


def use(folder: pathlib.Path) -> None:
    """Import, predict, train, and be refused where another run is."""
    from PIL import Image

    from stvit_cli.cli import main

    run, data = folder / "run", folder / "data"
    for name in ("train/digits", "train/turned", "val/digits", "val/turned"):
        (data / name).mkdir(parents=True)
        with Image.open(IMAGE) as image:
            for number in range(2):
                image.rotate(180 if "turned" in name else 0).save(data / name / f"{number}.png")
    assert main(["--help"]) == 0
    assert main(["predict", str(IMAGE), "--weights", "stvit-nano.digits", "--json", str(folder / "predicted.json")]) == 0
    assert main([*TRAIN, "--data", str(data), "--output", str(run)]) == 0
    assert main(["train", "--resume", str(run), "schedule.steps=3"]) == 2

    from stvit_cli.engine.run_lock import RunLock
    from stvit_cli.errors import UserError

    lock = RunLock.acquire(run)
    try:
        RunLock.acquire(run)
    except UserError as error:
        assert "in use by another run" in str(error)  # noqa: PT017
    else:
        raise AssertionError("the run directory was locked twice")
    assert not lock.is_shared
    lock.release()
    lock = RunLock.acquire(run)
    lock.release()


def main() -> int:
    """Return 0 where all systems passed."""
    folder, failed = pathlib.Path(sys.argv[1]), 0
    os.environ["XDG_CACHE_HOME"] = str(folder)
    for library in LIBRARIES:
        importlib.import_module(library)
    for system in sys.argv[2:]:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                become(system)
                (folder / system).mkdir()
                use(folder / system)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        failed += os.waitpid(child, 0)[1] != 0
    return failed


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
