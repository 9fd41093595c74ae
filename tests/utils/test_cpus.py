"""A container's CPU quota decides how many threads and workers there are, unless the user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stvit_cli.data.loader import usable_workers
from stvit_cli.engine.run_dir import environment
from stvit_cli.utils import cpus
from stvit_cli.utils.cpus import CPUs, cpu_quota, limit_threads, set_by_user, threads_note, usable_cpus

QUOTA_ONE = "from stvit_cli.utils import cpus; cpus._own_quota = lambda: 1.0; cpus.os.cpu_count = lambda: 64;"


def process(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """Write what Linux says of a process: ``cgroup``, ``mountinfo`` (``@`` is where the files are), and the groups' files."""
    (root / "cgroup").write_text(groups)
    (root / "mountinfo").write_text(mounts.replace("@", str(root / "sys")))
    for name, text in files.items():
        (root / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys" / name).write_text(text)
    return root


V2 = "31 23 0:28 / @ rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:27 / /sys/fs rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / @/cpuset rw - cgroup cgroup rw,cpuset\n"
    "33 31 0:30 {root} @/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2.5),  # in a container with a namespace of its own
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),  # the root group has no file
        (
            "0::/pods/a/b\n",
            {"pods/a/b/cpu.max": "max 100000\n", "pods/a/cpu.max": "150000 50000\n", "pods/cpu.max": "8 1\n"},
            3.0,
        ),
        (
            "0::/pods/a\n",
            {"pods/a/cpu.max": "400000 100000\n", "pods/cpu.max": "100000 100000\n", "other/cpu.max": "1 10\n"},
            1.0,
        ),
        ("0::/../../pods\n", {"cpu.max": "50000 100000\n"}, 0.5),  # a group outside of the namespace
        ("0::/\n", {"cpu.max": "0 0\n"}, None),
        ("0::/\n", {"cpu.max": "many\n"}, None),
        ("", {"cpu.max": "100000 100000\n"}, None),
    ],
)
def test_quota_of_cgroup_v2(tmp_path: Path, groups: str, files: dict[str, str], expected: float | None) -> None:
    assert cpu_quota(process(tmp_path, groups, V2, files)) == expected


@pytest.mark.parametrize(
    ("root", "path", "quota", "expected"),
    [
        ("/", "/docker/1", {"docker/1": "200000"}, 2.0),
        ("/", "/docker/1", {"docker/1": "-1"}, None),
        ("/", "/docker/1/job", {"docker/1/job": "-1", "docker/1": "350000"}, 3.5),
        ("/docker/1", "/docker/1", {"": "100000"}, 1.0),  # the own group is mounted at the top, as Docker does
        ("/docker/1", "/docker/1/job", {"": "400000", "job": "150000"}, 1.5),
        ("/docker/1", "/elsewhere", {"": "100000"}, 1.0),
    ],
)
def test_quota_of_cgroup_v1(tmp_path: Path, root: str, path: str, quota: dict[str, str], expected: float | None) -> None:
    files = {"cpuset/docker/1/cpu.cfs_quota_us": "1000", "cpuset/docker/1/cpu.cfs_period_us": "100000"}  # another controller's
    for name, value in quota.items():
        files |= {f"cpu,cpuacct/{name}/cpu.cfs_quota_us": f"{value}\n", f"cpu,cpuacct/{name}/cpu.cfs_period_us": "100000\n"}
    groups = f"3:cpuset:/docker/1\n4:cpu,cpuacct:{path}\n0::/\n"
    assert cpu_quota(process(tmp_path, groups, V1.format(root=root), files)) == expected


def test_both_versions_and_a_mount_point_with_a_space(tmp_path: Path) -> None:
    mounts = V2.replace("@", "@/a\\040b") + V1.format(root="/")
    files = {
        "a b/job/cpu.max": "300000 100000",
        "cpu,cpuacct/job/cpu.cfs_quota_us": "200000",
        "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
    }
    assert cpu_quota(process(tmp_path, "4:cpu,cpuacct:/job\n0::/job\n", mounts, files)) == 2.0


def test_no_quota_without_control_groups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("allowed", "quota", "usable"), [(64, None, 64), (64, 2.0, 2), (64, 2.5, 3), (64, 0.25, 1), (4, 16.0, 4), (1, None, 1)]
)
def test_usable_cpus(allowed: int, quota: float | None, usable: int) -> None:
    assert CPUs(64, allowed, quota).usable == usable


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container with a quota of 3.5 CPUs on a machine with 64; two processes share it; nobody has set the threads."""
    for name in (*cpus.THREAD_VARIABLES, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cpus, "cpus", lambda: CPUs(64, 64, 3.5))


def test_workers_and_environment_follow_the_quota(container: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cpus() == usable_workers(10) == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert usable_workers(10) == 2
    monkeypatch.setattr("stvit_cli.engine.run_dir.cpus", cpus.cpus)
    said = environment("cpu", 1, False)
    assert (said["cores"], said["usable_cpus"], said["cpu_quota"], said["threads"]) == (64, 4, 3.5, torch.get_num_threads())


class Threads:
    """Stands for torch: its number of threads."""

    def __init__(self, number: int) -> None:
        self.number = number

    def get_num_threads(self) -> int:
        return self.number

    def set_num_threads(self, number: int) -> None:
        self.number = number


@pytest.mark.parametrize(
    ("before", "processes", "environment", "after", "note"),
    [
        (64, "1", {}, 4, "Note: 4 threads, by the CPU quota of 3.5, on a machine with 64 CPUs."),
        (32, "1", {}, 4, "Note: 4 threads, by the CPU quota"),  # a thread for each of 32 cores
        (64, "2", {}, 2, "Note: 2 threads, by the CPU quota"),
        (64, "9", {}, 1, "Note: 1 thread ("),
        (7, "1", {}, 7, "Note: 7 threads (torch.set_num_threads) for a CPU quota of 3.5: slower than OMP_NUM_THREADS=4."),
        (3, "1", {}, 3, "Note: 3 threads, by"),
        (8, "1", {"OMP_NUM_THREADS": "8"}, 8, "Note: 8 threads (OMP_NUM_THREADS=8) for a CPU quota of 3.5"),
        (64, "1", {"MKL_NUM_THREADS": "64"}, 64, "Note: 64 threads (MKL_NUM_THREADS=64)"),
        (2, "1", {"OMP_NUM_THREADS": "2"}, 2, None),
        (1, "2", {"OMP_NUM_THREADS": "1"}, 1, "Note: 1 thread for each of 2 processes (OMP_NUM_THREADS=1; torchrun sets 1"),
    ],
)
def test_threads_are_lowered_unless_the_user_has_set_them(
    container: None,
    monkeypatch: pytest.MonkeyPatch,
    before: int,
    processes: str,
    environment: dict[str, str],
    after: int,
    note: str | None,
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    torch_threads = Threads(before)
    monkeypatch.setitem(sys.modules, "torch", torch_threads)
    limit_threads.cache_clear()
    limit_threads()
    limit_threads.cache_clear()
    assert torch_threads.number == after
    said = threads_note()
    assert said == note if note is None else (said or "").startswith(note)


def test_set_by_user_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert set_by_user() == "OMP_NUM_THREADS=5"


def test_the_command_line_sets_the_threads_when_torch_is_imported() -> None:
    again = "torch.set_num_threads(2); main(['--version']); print(torch.get_num_threads())"
    first = "import sys; from stvit_cli.cli import main; main(['--version']); assert 'torch' not in sys.modules"
    code = f"{QUOTA_ONE} {first}; import torch; print(torch.get_num_threads()); {again}"
    environment = {name: value for name, value in os.environ.items() if name not in cpus.THREAD_VARIABLES}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split()[2::3] == ["1", "2"], ended.stdout  # what the user sets is kept
