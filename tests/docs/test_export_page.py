"""The lines of docs/export.md run as they are, and find what `stvit predict` finds."""

from __future__ import annotations

import ast
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import stvit_cli

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
LINES = re.compile(r"start:lines\]\n(.*?)# --8<--", re.DOTALL)


def run(name: str, *words: str | Path) -> dict[str, Any]:
    """Run a script of docs/examples, and return its variables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, words)])
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def run_changed(heading: str, file: str) -> None:
    """Run the lines of a classifier with those that a section of the page puts in place of the ones with ``session``."""
    (snippet,) = re.findall(rf"^## {heading}\n(?:(?!^## ).)*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    before, after = re.split(r"^\.\.\..*\n", snippet, flags=re.MULTILINE)
    lines = LINES.findall((EXAMPLES / "onnx_classifier.py").read_text(encoding="utf-8"))[0].splitlines()
    first, *others = (index for index, line in enumerate(lines) if "session" in line)
    assert len(others) == 2
    lines[first : others[0] + 1], lines[others[1]] = [before, ""], after
    lines = [line for line in lines if line != "import onnxruntime"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["snippet", file, "photo.png"])
        exec(compile("\n".join(lines), "docs/export.md", "exec"), {"__name__": "snippet"})


@pytest.fixture
def digit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Work in a new folder with an image of a digit; return its class."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(__file__).parents[1] / "images" / "digit-3.png", tmp_path / "photo.png")
    return str(stvit_cli.load("stvit-nano.digits").predict("photo.png").classes[0].name)  # type: ignore[attr-defined]


@pytest.fixture
def scene(tmp_path: Path, coco_tree: Path) -> Path:
    """A photo of shapes that all models reduce, upright by its EXIF orientation alone."""
    image = Image.open(min((coco_tree / "val2017").glob("*.png"))).convert("RGB").resize((300, 171), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[274] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photo.png", exif=exif)
    return tmp_path / "photo.png"


def test_every_script_is_on_the_page_and_short() -> None:
    shown = re.findall(r'^--8<-- "docs/examples/(.*):lines"$', PAGE, re.MULTILINE)
    assert shown == ["onnx_classifier.py", "onnx_detector.py", "onnx_segmenter.py"]
    for name in shown:
        statements = ast.parse((EXAMPLES / name).read_text(encoding="utf-8")).body[1:]
        assert len([each for each in statements if not isinstance(each, ast.Import | ast.ImportFrom)]) <= 12


def test_a_classifier(exported: Callable[[str], Path], scene: Path) -> None:
    found = run("onnx_classifier.py", exported("digits"), scene)
    expected = stvit_cli.load("stvit-nano.digits").predict(scene, top=10).classes  # type: ignore[attr-defined]
    assert dict(zip(found["names"], found["scores"], strict=True)) == pytest.approx(
        {each.name: each.probability for each in expected}, abs=1e-3
    )


def test_a_detector(exported: Callable[[str], Path], scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run("onnx_detector.py", exported("shapes-mask-rcnn"), scene)
    expected = stvit_cli.load("stvit-nano.shapes-mask-rcnn").predict(scene, score_threshold=0.05).objects  # type: ignore[attr-defined]
    assert len(found["scores"]) == len(expected) > 0
    assert [found["names"][label] for label in found["labels"]] == [each.name for each in expected]
    np.testing.assert_allclose(found["scores"], [each.score for each in expected], atol=1e-3)
    np.testing.assert_allclose(found["boxes"], [each.box for each in expected], atol=0.1)
    assert len(capsys.readouterr().out.splitlines()) == sum(each.score >= 0.5 for each in expected)


def test_a_segmenter(exported: Callable[[str], Path], scene: Path, tmp_path: Path) -> None:
    run("onnx_segmenter.py", exported("shapes-upernet"), scene, tmp_path / "labels.png")
    labels = np.asarray(Image.open(tmp_path / "labels.png"))
    expected = stvit_cli.load("stvit-nano.shapes-upernet").predict(scene).numbers  # type: ignore[attr-defined]
    assert len(np.unique(labels)) > 1
    assert (labels + 1 == expected).mean() > 0.999  # numbers of the data start from 1, as 0 is for no label


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
    run_changed("OpenVINO", "classifier.xml")
    assert capsys.readouterr().out.split()[0] == digit
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
    run_changed("torch.export", "classifier.pt2")
    assert capsys.readouterr().out.split()[0] == digit
