"""The snippets of docs/export.md run as they are, and say what `stvit predict` says."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stvit_cli

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"^## ([^\n]*)\n(?:(?!^## ).)*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))


def run(heading: str) -> None:
    exec(compile(SNIPPETS[heading], "docs/export.md", "exec"), {"__name__": "snippet"})


@pytest.fixture
def digit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Work in a new folder with an image of a digit; return its class."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(__file__).parents[1] / "images" / "digit-3.png", tmp_path / "photo.png")
    return stvit_cli.load("stvit-nano.digits").predict("photo.png").classes[0].name  # type: ignore[attr-defined]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coco_tree: Path) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(next((coco_tree / "val2017").glob("*.png")), tmp_path / "photo.png")


def test_every_snippet_is_run_and_short() -> None:
    assert len(SNIPPETS) == 5
    for code in SNIPPETS.values():
        assert len([line for line in code.splitlines() if line and not line.startswith(("import", "from"))]) <= 12


def test_a_classifier(exported: Callable[[str], Path], digit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(exported("digits"), tmp_path / "classifier.onnx")
    run("A classifier in onnxruntime")
    assert capsys.readouterr().out.strip() == digit


def test_a_detector(exported: Callable[[str], Path], scene: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(exported("shapes-mask-rcnn"), tmp_path / "detector.onnx")
    run("A detector in onnxruntime")
    said = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[0].isalpha()]
    expected = stvit_cli.load("stvit-nano.shapes-mask-rcnn").predict("photo.png")
    assert sorted(said) == sorted(found.name for found in expected.objects) != []  # type: ignore[attr-defined]


def test_a_segmenter(exported: Callable[[str], Path], scene: None, tmp_path: Path) -> None:
    shutil.copy(exported("shapes-upernet"), tmp_path / "segmenter.onnx")
    run("A segmenter in onnxruntime")
    labels = np.asarray(Image.open("labels.png"))
    stvit_cli.load("stvit-nano.shapes-upernet").predict("photo.png").draw(tmp_path / "drawn.png")
    expected = np.asarray(Image.open("drawn-labels.png"))
    assert len(np.unique(labels)) > 1
    same = labels + expected[0, 0] - labels[0, 0] == expected  # from 0, and from 1; the first pixel is background
    assert same.mean() > 0.95  # labels are resized here, logits there


def test_openvino(digit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    model = stvit_cli.load("stvit-nano.digits")
    written = model.export("classifier.xml", "fp16")
    sizes = [Path(name).stat().st_size for name in ("classifier.xml", "classifier.bin")]
    assert written.size_bytes == sum(sizes)
    assert sizes[1] < 2.6e6  # two bytes a weight
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classifier.bin", "classifier.xml", "photo.png"]
    assert str(tmp_path) not in Path("classifier.xml").read_text(encoding="utf-8")
    run("OpenVINO")
    assert capsys.readouterr().out.strip() == digit
    found = stvit_cli.load("classifier.xml").predict("photo.png").classes[0]  # type: ignore[attr-defined]
    assert (found.name, found.probability > 0.5) == (digit, True)


@pytest.mark.slow  # half a minute; tests/analysis/test_export.py has a smaller one
def test_torch_export(digit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stvit_cli.load("stvit-nano.digits").export("classifier.pt2")
    content = Path("classifier.pt2").read_bytes()
    assert not [
        trace
        for trace in (str(tmp_path), str(Path(stvit_cli.__file__).parents[1]), "site-packages", "stvit.py")
        if trace.encode() in content
    ]
    run("torch.export")
    assert capsys.readouterr().out.strip() == digit
