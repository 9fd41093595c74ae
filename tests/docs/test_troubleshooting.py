"""Messages lead to the page on troubleshooting, and the page has what they lead to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import torch

from stvit_cli.engine.distributed import World
from stvit_cli.engine.slow_spots import slow_loader, unused_gpus
from stvit_cli.utils import troubleshooting
from stvit_cli.utils.machine_failures import describe, machine_failure
from stvit_cli.utils.troubleshooting import Topic, see

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("topic", get_args(Topic))
def test_the_page_has_every_topic_and_a_message_leads_there(topic: Topic) -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / troubleshooting.PAGE).read_text(encoding="utf-8"), re.MULTILINE)
    assert topic in [heading.lower().replace(" ", "-") for heading in headings]
    callers = [path for path in (ROOT / "stvit_cli").rglob("*.py") if path.name != "troubleshooting.py"]
    assert any(re.search(rf"""see\(["']{topic}["']\)|: "{topic}\"""", path.read_text(encoding="utf-8")) for path in callers)


@pytest.mark.parametrize(
    ("error", "topic"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out-of-memory"),
        (MemoryError(), "out-of-memory"),
        (RuntimeError("unable to write to file </torch_12_3>: No space left on device (28)"), "shared-memory"),
    ],
)
def test_limits_of_the_machine_lead_there(error: Exception, topic: Topic) -> None:
    failure = machine_failure(error)
    assert failure is not None
    lines = describe(failure, "a lower --batch-size").splitlines()
    assert lines[-1] == see(topic)
    assert len(lines) <= 4


def test_one_process_on_several_gpus_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    (note,) = unused_gpus(World(rank=0, size=1, device=torch.device("cuda", 0)))
    assert "torchrun --nproc-per-node 8" in note
    assert note.endswith(see("one-gpu"))
    assert unused_gpus(World(rank=0, size=8, device=torch.device("cuda", 0))) == []
    assert unused_gpus(World(rank=0, size=1, device=torch.device("cpu"))) == []


@pytest.mark.parametrize(("waited", "device", "is_said"), [(2.9, "cuda", False), (3.1, "cuda", True), (9.0, "cpu", False)])
def test_a_gpu_that_waits_for_data_is_said(waited: float, device: str, is_said: bool) -> None:
    note = slow_loader(waited, 10.0, torch.device(device), 4)
    assert (note is not None) == is_said
    assert note is None or (note.endswith(see("slow-loader")) and "data.num_workers=4" in note)
