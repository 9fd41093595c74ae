"""``stvit convert`` on published files and on others, through the command line."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stvit_cli.models.stvit import STViT, Variant
from stvit_cli.models.weights.authors_checkpoint import LICENCE
from stvit_cli.models.weights.file import load_weights, read_info, read_weights

Stvit = Callable[..., Any]

GOLDEN = Path(__file__).parents[2] / "golden"
PTH = GOLDEN / "published_layout_tiny.pth"
TINY = Variant((16, 32, 48, 64), (1, 2, 2, 1), (1, 2, 3, 4), layer_scale=1e-6, proj_dim=96)


def small_published_file(path: Path, **arguments: int) -> None:
    """A checkpoint of stvit-s as the authors' script writes it: every weight zero but the running variance."""
    from stvit_cli import create_model

    with torch.device("meta"):
        shapes = create_model("stvit-s").state_dict()
    weights = {f"module.{name}": torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in shapes.items()}
    weights["module.stages.0.blocks.0.attn.unfold.weights"] = torch.eye(9).reshape(9, 1, 3, 3)
    torch.save({"model": weights, "args": argparse.Namespace(**arguments)}, path)


def test_published_file(tmp_path: Path, stvit: Stvit) -> None:
    small_published_file(tmp_path / "a.pth", input_size=384)
    ended = stvit("convert", tmp_path / "a.pth", tmp_path / "a.safetensors", "--json", "-")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert (report["model"], report["image_size"], report["image_size_from"]) == ("stvit-s", 384, "file")
    info = read_info(tmp_path / "a.safetensors")
    assert (info.model, info.num_classes, info.image_size, info.licence) == ("stvit-s", 1000, 384, LICENCE)
    assert len(info.class_names) == 1000


def test_an_unknown_image_size_is_guessed_aloud_or_given(tmp_path: Path, stvit: Stvit) -> None:
    small_published_file(tmp_path / "a.pth")
    ended = stvit("convert", tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert ended.code == 0
    assert "224 pixels are assumed" in ended.err
    ended = stvit("convert", tmp_path / "a.pth", tmp_path / "b.safetensors", "--image-size", 384)
    assert ended.code == 0
    assert "assumed" not in ended.out + ended.err
    assert read_info(tmp_path / "b.safetensors").image_size == 384


def test_every_key_is_accounted_for_and_the_logits_are_the_golden_ones(tmp_path: Path, stvit: Stvit) -> None:
    path = tmp_path / "tiny.safetensors"
    ended = stvit("convert", PTH, path, "--json", tmp_path / "report.json")
    assert ended.code == 0, ended.err
    assert "no named model" in ended.err, ended.err
    report = json.loads((tmp_path / "report.json").read_text())
    source = read_weights(PTH)
    assert len(report["renamed"]) == 178 - 9
    assert len(report["left_out"]) == 12
    assert report["tensors"] == len(source.state_dict)
    model = STViT(TINY, num_classes=10).eval()
    loaded = load_weights(model, path)
    assert len(loaded.loaded) == report["tensors"]
    assert loaded.missing == loaded.unexpected == []
    arrays = np.load(GOLDEN / "published_layout_tiny.npz")
    for case in range(3):
        expected = torch.from_numpy(arrays[f"case{case}.logits"])
        with torch.no_grad():
            error = (model(torch.from_numpy(arrays[f"case{case}.image"])) - expected).abs().max() / expected.abs().max()
        assert error < 1e-5


def test_choosing_the_averaged_weights(tmp_path: Path, stvit: Stvit) -> None:
    with torch.serialization.safe_globals([argparse.Namespace]):
        weights = torch.load(PTH, weights_only=True)["model"]
    torch.save({"model": weights, "model_ema": weights | {"head.bias": torch.full((10,), 7.0)}}, tmp_path / "both.pth")
    ended = stvit("convert", tmp_path / "both.pth", tmp_path / "a.safetensors")
    assert ended.code == 0
    assert "Also there, not taken: model_ema" in ended.err
    assert stvit("convert", tmp_path / "both.pth", tmp_path / "b.safetensors", "--from", "model_ema").code == 0
    assert read_weights(tmp_path / "b.safetensors").state_dict["head.bias"].tolist() == [7.0] * 10
    ended = stvit("convert", tmp_path / "both.pth", tmp_path / "c.safetensors", "--from", "ema")
    assert ended.code == 2
    assert "Found: model, model_ema" in ended.err


def test_refused(tmp_path: Path, stvit: Stvit) -> None:
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    (tmp_path / "half.pth").write_bytes(PTH.read_bytes()[:400_000])
    torch.save({"layers.0.weight": torch.ones(3)}, tmp_path / "foreign.pth")
    before = sorted(tmp_path.iterdir())
    for source, target, says in [
        ("page.pth", "x.safetensors", "it starts with b'<!DOCTYPE html>'"),
        ("half.pth", "x.safetensors", "truncated"),
        ("foreign.pth", "x.safetensors", "not the weights of a known model"),
        ("absent.pth", "x.safetensors", "no such weights file"),
        ("page.pth", "x.pth", "expected a name ending in .safetensors"),
        ("page.pth", "absent/x.safetensors", "there is no folder"),
    ]:
        ended = stvit("convert", tmp_path / source, tmp_path / target)
        assert ended.code == 2, ended
        assert says in ended.err, ended
        assert len(ended.err.splitlines()) <= 6, ended
        assert ended.out == "", ended
    assert sorted(tmp_path.iterdir()) == before
