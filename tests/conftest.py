"""Fixtures that several tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from stvit_cli.utils.cpus import usable_cpus

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Side by side (pytest -n), each process computes on its part of the CPUs: torch takes all cores otherwise.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // int(workers))))


def _first_backward_pass() -> None:
    """Tests fork processes that train (`helpers.toy.start`), and after autograd's threads have started, none of them could.

    The first backward pass starts one for each GPU, and after FakeTensorMode, which torch.export and torch.compile use, also for
    a GPU that is none. So it is made before any test.
    """
    import torch  # after OMP_NUM_THREADS, which it reads

    torch.ones(1, requires_grad=True).sum().backward()


_first_backward_pass()

# The same examples every time, and none remembered: a failure here is a failure everywhere.
settings.register_profile("reproducible", derandomize=True, database=None, deadline=None, max_examples=40)
settings.load_profile("reproducible")


class Ended(NamedTuple):
    """What a command left behind: its exit code and what it wrote."""

    code: int
    out: str
    err: str


Stvit = Callable[..., Ended]


@pytest.fixture
def stvit(capsys: pytest.CaptureFixture[str]) -> Stvit:
    """Run the real command line in this process: ``stvit("recipes", "list")``."""

    def run(*argv: str | Path) -> Ended:
        from stvit_cli.cli import main

        capsys.readouterr()
        code = main([str(word) for word in argv])
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two classes, eight training and three validation images each: reddish and bluish noise of 40 x 48."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for channel, name in ((0, "red"), (2, "blue")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 120, (40, 48, 3), dtype=np.uint8)
                pixels[..., channel] += 130
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def coco_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO tree of synthetic shapes, four to train on and two to evaluate, of at most 64 pixels."""
    from stvit_cli.data.shapes import write_coco_tree

    root = tmp_path_factory.mktemp("coco") / "tree"
    write_coco_tree(root, (4, 2), 64, seed=0)
    return root


@pytest.fixture(scope="session")
def ade20k_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same scenes in ADE20K's layout."""
    from stvit_cli.data.shapes import write_ade20k_tree

    root = tmp_path_factory.mktemp("ade20k")
    write_ade20k_tree(root, (4, 2), 64, seed=0)
    return root


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the ONNX file of packaged weights: ``exported("digits")``. It takes some seconds, so once in a session."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exported")

    def export(name: str) -> Path:
        from stvit_cli.analysis.export import export_onnx
        from stvit_cli.tasks.loading import open_trained

        path = folder / f"{name}.onnx"
        if not path.exists():
            export_onnx(open_trained(f"stvit-nano.{name}"), path)
        return path

    return export


@pytest.fixture(scope="session", autouse=True)
def report_of_runs() -> Iterator[Callable[..., None]]:
    """Runs of tests end without a report, which takes seconds. Yields what writes it; the marker ``report`` turns it on."""
    from stvit_cli.api import after_run

    write_report = after_run.write_report
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(after_run, "write_report", lambda *_: None)
        yield write_report


@pytest.fixture(autouse=True)
def _with_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, report_of_runs: Callable[..., None]) -> None:
    if "report" in request.keywords:
        monkeypatch.setattr("stvit_cli.api.after_run.write_report", report_of_runs)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-messages", action="store_true", help="write tests/cli/messages.txt again; read the diff")
    parser.addoption("--screenshots", metavar="DIR", help="save what the tests of pages see in a browser; look at them")
