"""DDP over NCCL with one and two processes, and synchronized batch norm; the same program over gloo on a CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.gpu_devices import REAL, require_gpus
from helpers.processes import train_by_one_and_by_two
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("ddp_worker.py")
ON_CPU = pytest.param("cpu", marks=pytest.mark.slow)


def trained(folder: Path, device: str, processes: int, *options: str) -> dict[str, Any]:
    """Return the losses and weights of a training by a number of processes; 0: by one without DDP."""
    output = folder / f"{processes}.pt"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = [sys.executable, *(torchrun if processes else []), str(WORKER), str(output), "--device", device, *options]
    done = subprocess.run([*start, *([] if processes else ["--alone"])], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return torch.load(output)


def assert_same(found: dict[str, Any], expected: dict[str, Any], atol: float) -> None:
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert expected["losses"][-1] != expected["losses"][0]
    for name, tensor in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], tensor, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("device", [ON_CPU, REAL])
@pytest.mark.parametrize("options", [(), ("--kernels",)])
def test_one_process_with_ddp_is_one_without(device: str, options: tuple[str, ...], tmp_path: Path) -> None:
    if device == "cuda":
        require_gpus()
    assert_same(trained(tmp_path, device, 1, *options), trained(tmp_path, device, 0, *options), atol=1e-5)


@pytest.mark.parametrize("device", [ON_CPU, REAL])
@pytest.mark.parametrize("options", [(), ("--kernels",), ("--sync-bn",)])
def test_two_processes_train_what_one_does(device: str, options: tuple[str, ...], tmp_path: Path) -> None:
    if device == "cuda":
        require_gpus(2)
    elif options == ("--sync-bn",):
        pytest.skip("PyTorch has no synchronized batch norm for CPUs")
    assert_same(trained(tmp_path, device, 2, *options), trained(tmp_path, device, 0, *options), atol=1e-4)


@pytest.mark.parametrize("device", [ON_CPU, REAL])
def test_a_run_of_two_processes_has_the_same_kernels_on_both(device: str, tmp_path: Path) -> None:
    """`train.kernels=auto` is decided by the first process; with batch norm frozen the results are those of one process."""
    if device == "cuda":
        require_gpus(2)
    words = ["data.image_size=32", "train.global_batch_size=16", "schedule.steps=3", "train.eval_every_steps=3"]
    words += [f"train.device={device}", f"train.sync_bn={str(device == 'cuda').lower()}", "data.num_workers=0"]
    words += ["train.report=false", "schedule.warmup_epochs=0", "train.precise_bn_steps=0"]
    one, two = train_by_one_and_by_two("quickstart", tmp_path, words)
    found, expected = load_file(two / "last.safetensors"), load_file(one / "last.safetensors")
    if device == "cuda":  # on a CPU each process has its own statistics
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-3)
    assert found.keys() == expected.keys()
