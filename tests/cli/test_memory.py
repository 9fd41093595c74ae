"""Freed memory stays in the process, unless the user has set malloc up."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from stvit_cli.cli.memory import keep_freed_memory
keep_freed_memory()
import torch
faults = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(8 * 2**20)  # 32 MiB, freed at once
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))  # the first rounds ask the system, and it may move pages of its own accord in any
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(("own_setting", "is_kept"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "1000000"}, False)])
def test_freed_memory_is_kept(own_setting: dict[str, str], is_kept: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "THP_"))}
    environment |= own_setting

    def faults() -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env=environment)
        return int(done.stdout)

    # 8192 small pages, or 16 large ones; where other processes want memory, the system may take kept pages away for a while.
    assert (min(faults() for _ in range(1 + is_kept)) < 4) == is_kept
