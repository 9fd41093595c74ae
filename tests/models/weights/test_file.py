"""Weight files: the published layout and its golden numbers, ours, and all that is refused before a weight changes."""

import argparse
import io
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stvit_cli import create_model, list_models
from stvit_cli.errors import UserError
from stvit_cli.models.stvit import STViT, Variant
from stvit_cli.models.weights import authors_checkpoint
from stvit_cli.models.weights.authors_checkpoint import LICENCE, identify
from stvit_cli.models.weights.file import WeightsInfo, load_weights, read_info, read_state_dict, read_weights, save_weights

GOLDEN = Path(__file__).parents[2] / "golden"
PTH = GOLDEN / "published_layout_tiny.pth"
TINY = Variant((16, 32, 48, 64), (1, 2, 2, 1), (1, 2, 3, 4), layer_scale=1e-6, proj_dim=96)
MINIMAL = Variant((8, 8, 16, 16), (1, 1, 1, 1), (1, 2, 2, 2), layer_scale=1.0, grid_sizes=(4, 2, 1, 1), proj_dim=16)

StateDict = dict[str, Tensor]
Published = Callable[[StateDict], StateDict]


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(PTH, weights_only=True)


@pytest.fixture
def nano(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A model and its file, for ten classes of grey images."""
    model = create_model("stvit-nano", num_classes=10, in_chans=1)
    info = WeightsInfo(
        "stvit-nano", num_classes=10, class_names=tuple("0123456789"), in_chans=1, mean=(0.5,), std=(0.5,), image_size=64
    )
    save_weights(tmp_path / "nano.safetensors", model, info)
    return model, tmp_path / "nano.safetensors"


def assert_refused(path: Path, model: nn.Module | None = None, *, says: str = "") -> None:
    """The file ends with a few clear lines, and no weight of the model is another one than before."""
    model = model or create_model("stvit-nano")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_weights(model, path)
    message = str(error.value)
    print(message)
    assert path.name in message
    assert says in message
    assert 1 <= len(message.splitlines()) <= 6
    assert max(len(line) for line in message.splitlines()) < 300 + len(str(path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# The published layout


@pytest.mark.parametrize("container", ["model", "model_ema", "state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_published_file_gives_the_golden_logits(
    golden: dict[str, Any], tmp_path: Path, container: str | None, prefix: str
) -> None:
    weights = {prefix + name: tensor for name, tensor in golden["model"].items()}
    torch.save({container: weights, "args": golden["args"], "epoch": 3} if container else weights, tmp_path / "x.pth")
    model = STViT(TINY, num_classes=10).eval()
    report = load_weights(model, tmp_path / "x.pth")
    arrays = np.load(GOLDEN / "published_layout_tiny.npz")
    for case in range(3):
        expected = torch.from_numpy(arrays[f"case{case}.logits"])
        with torch.no_grad():
            error = (model(torch.from_numpy(arrays[f"case{case}.image"])) - expected).abs().max() / expected.abs().max()
        assert error < 1e-5
    # Every name of the model and of the file is accounted for.
    assert set(report.loaded) == set(model.state_dict())
    assert len(report.left_out) == 12
    assert report.missing == report.unexpected == report.reset == report.adapted == []
    untouched = [name for name in weights if name not in report.renamed and name not in report.left_out]
    assert set(report.renamed.values()) | set(untouched) == set(report.loaded)


def test_round_trip_through_the_published_layout(tmp_path: Path, published: Published) -> None:
    model, other = (create_model("stvit-nano") for _ in range(2))
    torch.save(published(model.state_dict()), tmp_path / "x.pth")
    load_weights(other, tmp_path / "x.pth")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert read_info(tmp_path / "x.pth").model == "stvit-nano"


def test_old_and_half_precision_files(golden: dict[str, Any], tmp_path: Path) -> None:
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in golden["model"].items()}
    torch.save(halved, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    model = STViT(TINY, num_classes=10)
    assert load_weights(model, tmp_path / "old.pth").missing == []
    assert torch.equal(model.head.weight, golden["model"]["head.weight"].half().float())
    assert model.head.weight.dtype == torch.float32


def test_model_before_model_ema(golden: dict[str, Any], tmp_path: Path) -> None:
    averaged = {name: tensor + 1 if name == "head.bias" else tensor for name, tensor in golden["model"].items()}
    torch.save({"model_ema": averaged, "model": golden["model"]}, tmp_path / "x.pth")
    taken, asked_for = read_weights(tmp_path / "x.pth"), read_weights(tmp_path / "x.pth", "model_ema")
    assert (taken.container, taken.others) == ("model", ("model_ema",))
    assert torch.equal(taken.state_dict["head.bias"] + 1, asked_for.state_dict["head.bias"])
    with pytest.raises(UserError, match=r"no weights under 'state_dict'. Found: model, model_ema"):
        read_weights(tmp_path / "x.pth", "state_dict")


@pytest.mark.parametrize("name", list_models())
def test_models_are_told_apart_by_their_shapes(name: str) -> None:
    with torch.device("meta"):
        state_dict = create_model(name, num_classes=7, in_chans=5).state_dict()
    info = identify(state_dict, image_size=384)
    assert (info.model, info.num_classes, info.in_chans, info.image_size) == (name, 7, 5, 384)


@pytest.mark.parametrize("name", ["stvit-nano", "isotropic-mini-stvit-20-norpe"])
def test_a_file_is_described_without_building_every_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        state_dict = create_model(name).state_dict()
    built: list[str] = []
    monkeypatch.setattr(authors_checkpoint, "_create", lambda name: [built.append(name), create_model(name)][1])
    authors_checkpoint._shapes_of.cache_clear()
    identify(state_dict)
    assert built == [name]


@pytest.mark.parametrize(("size", "expected"), [(384, 384), (None, 224), ("384", 224)])
def test_image_size_is_in_the_arguments_or_nowhere(tmp_path: Path, published: Published, size: Any, expected: int) -> None:
    arguments = argparse.Namespace(model="stvit", **({} if size is None else {"input_size": size}))
    torch.save({"model": published(create_model("stvit-s").state_dict()), "args": arguments}, tmp_path / "x.pth")
    info = read_info(tmp_path / "x.pth")
    assert (info.model, info.image_size, info.num_classes, info.licence) == ("stvit-s", expected, 1000, LICENCE)
    assert info.class_names[0] == "n01440764"
    assert len(info.class_names) == 1000


# Our own files


def test_our_file_says_what_it_is(nano: tuple[nn.Module, Path]) -> None:
    model, path = nano
    info = read_info(path)
    assert info.model == "stvit-nano"
    assert info.class_names == tuple("0123456789")
    assert info.mean == (0.5,)
    other = create_model(info.model, info.num_classes, info.in_chans)
    report = load_weights(other, path)
    assert report.loaded == list(model.state_dict())
    assert report.renamed == {}
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_equal_weights_give_equal_files(nano: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, path = nano
    save_weights(tmp_path / "other.safetensors", model.to(memory_format=torch.channels_last), read_info(path))
    assert path.read_bytes() == (tmp_path / "other.safetensors").read_bytes()


def test_others_may_read_the_file(nano: tuple[nn.Module, Path]) -> None:
    plain = nano[1].with_name("plain")
    plain.touch()
    assert nano[1].stat().st_mode == plain.stat().st_mode


def test_a_failed_write_leaves_the_older_file(nano: tuple[nn.Module, Path]) -> None:
    _, path = nano
    before = path.read_bytes()
    shared = torch.ones(4)
    with pytest.raises(Exception, match=r"shared|memory"):
        save_weights(path, {"a": shared, "b": shared}, WeightsInfo("stvit-nano"))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_other_classes_and_channels(nano: tuple[nn.Module, Path], tmp_path: Path) -> None:
    save_weights(tmp_path / "rgb.safetensors", create_model("stvit-nano", 10), WeightsInfo("stvit-nano", num_classes=10))
    model = create_model("stvit-nano", num_classes=3, in_chans=1)
    head = model.get_classifier().weight.clone()
    assert_refused(tmp_path / "rgb.safetensors", model, says="The file holds stvit-nano with 10 classes and 3 channels.")
    report = load_weights(model, tmp_path / "rgb.safetensors", new_head=True)
    assert report.reset == ["head.weight", "head.bias"]
    assert report.adapted == ["stem.0.conv.weight"]
    assert torch.equal(model.get_classifier().weight, head)
    kernel = read_state_dict(tmp_path / "rgb.safetensors")["stem.0.conv.weight"]
    torch.testing.assert_close(model.stem[0].conv.weight, kernel.sum(1, keepdim=True))
    # A backbone of another task has no classifier at all.
    body = dict(create_model("stvit-nano", 0).state_dict())
    save_weights(tmp_path / "body.safetensors", body, WeightsInfo("stvit-nano", num_classes=0))
    assert load_weights(create_model("stvit-nano", 3), tmp_path / "body.safetensors", new_head=True).reset == [
        "head.weight",
        "head.bias",
    ]
    assert load_weights(create_model("stvit-nano", 3), tmp_path / "body.safetensors").missing == ["head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_classes": "ten"}, "num_classes"),
        ({"image_size": 0}, "image_size"),
        ({"mean": [0.5, 0.5]}, "mean: 2 numbers for 1 channels"),
        ({"class_names": ["a"]}, "class_names: 1 names for 10 classes"),
        ("{", "Invalid JSON"),
        ("[1]", "description"),
    ],
)
def test_bad_descriptions(nano: tuple[nn.Module, Path], change: Any, says: str) -> None:
    model, path = nano
    text = change if isinstance(change, str) else json.dumps(json.loads(read_info(path).to_json()) | change)
    save_file(dict(model.state_dict()), path, metadata={"stvit": text})
    with pytest.raises(UserError, match=says):
        read_info(path)
    assert_refused(path, says=says)


def test_a_later_version_may_say_more(nano: tuple[nn.Module, Path]) -> None:
    model, path = nano
    info = read_info(path)
    save_file(dict(model.state_dict()), path, metadata={"stvit": json.dumps(json.loads(info.to_json()) | {"new": [1]})})
    assert read_info(path) == info


# What must be refused


class Command:
    """What a hostile pickle holds: a command that loading would run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.mark}'",)


@pytest.mark.parametrize("kind", ["bare", "zip", "in the arguments", "legacy"])
def test_hostile_pickles_do_not_run(tmp_path: Path, kind: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "x.pth"
    weights = create_model("stvit-nano").state_dict()
    if kind == "bare":
        path.write_bytes(pickle.dumps({"model": Command(mark)}, protocol=2))
    else:
        content = {"args": argparse.Namespace(odd=Command(mark))} if kind == "in the arguments" else {"extra": Command(mark)}
        torch.save({"model": weights} | content, path, _use_new_zipfile_serialization=kind != "legacy")
    assert_refused(path, says="system")
    assert not mark.exists()
    with zipfile.ZipFile(path) if zipfile.is_zipfile(path) else io.BytesIO():
        torch.load(path, weights_only=False) if kind != "bare" else pickle.loads(path.read_bytes())
    assert mark.exists(), "the file was harmless, so the test showed nothing"


class Odd:
    pass


def test_nothing_but_a_namespace_is_let_in(golden: dict[str, Any], tmp_path: Path) -> None:
    for number, odd in enumerate([Path("x"), np.float64(1.0), Odd()]):
        path = tmp_path / f"{number}.pth"
        torch.save({"model": golden["model"], "args": argparse.Namespace(value=odd)}, path)
        assert_refused(path)


def packed(source: Path, target: Path, extra: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
        for name, content in (extra or {}).items():
            new.writestr(name, content)


def test_bombs(golden: dict[str, Any], tmp_path: Path) -> None:
    packed(PTH, tmp_path / "packed.pth")
    assert_refused(tmp_path / "packed.pth", says="compressed")
    packed(PTH, tmp_path / "bomb.pth", {"archive/data/999": bytes(1 << 24)})
    assert_refused(tmp_path / "bomb.pth", says="compressed")
    torch.save(dict(golden["model"]) | {"head.weight": torch.zeros(1).expand(1 << 40)}, tmp_path / "swelling.pth")
    assert_refused(tmp_path / "swelling.pth", says="head.weight claims to be larger")
    (tmp_path / "header.safetensors").write_bytes((1 << 50).to_bytes(8, "little") + b"{}")
    assert_refused(tmp_path / "header.safetensors")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(10, 96).to_sparse(),
        torch.empty(10, 96, device="meta"),
        torch.zeros(10, 96, dtype=torch.complex64),
        torch.zeros(10, 96, dtype=torch.bool),
    ],
)
def test_odd_tensors(golden: dict[str, Any], tmp_path: Path, tensor: Tensor) -> None:
    torch.save(dict(golden["model"]) | {"head.weight": tensor}, tmp_path / "x.pth")
    assert_refused(tmp_path / "x.pth", STViT(TINY, 10))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(golden: dict[str, Any], tmp_path: Path, value: float) -> None:
    bias = golden["model"]["head.bias"].clone()
    bias[3] = value
    torch.save(dict(golden["model"]) | {"head.bias": bias}, tmp_path / "x.pth")
    assert_refused(tmp_path / "x.pth", STViT(TINY, 10), says="head.bias has values that are not finite")


def test_kernels_that_are_not_the_identity(golden: dict[str, Any], tmp_path: Path) -> None:
    name = "layers.0.blocks.0.attn.fold.weights"
    torch.save(dict(golden["model"]) | {name: golden["model"][name] * 2}, tmp_path / "x.pth")
    assert_refused(tmp_path / "x.pth", STViT(TINY, 10), says=name)


def test_one_name_twice(golden: dict[str, Any], tmp_path: Path) -> None:
    torch.save(dict(golden["model"]) | {"module.head.bias": golden["model"]["head.bias"]}, tmp_path / "x.pth")
    assert_refused(tmp_path / "x.pth", STViT(TINY, 10), says="head.bias")


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_truncated(nano: tuple[nn.Module, Path], tmp_path: Path, ending: str) -> None:
    source = PTH if ending == ".pth" else nano[1]
    content = source.read_bytes()
    path = tmp_path / ("cut" + ending)
    for size in (0, 1, 7, 9, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert_refused(path)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_flipped_bits(nano: tuple[nn.Module, Path], tmp_path: Path, ending: str) -> None:
    """Every flip is noticed, or has changed nothing that matters (the padding between the parts of an archive)."""
    source = PTH if ending == ".pth" else nano[1]
    clean = read_weights(source)
    content = source.read_bytes()
    path = tmp_path / ("flipped" + ending)
    refused = 0
    generator = random.Random(0)
    for _ in range(60):
        position = generator.randrange(len(content))
        path.write_bytes(
            content[:position] + bytes([content[position] ^ (1 << generator.randrange(8))]) + content[position + 1 :]
        )
        try:
            file = read_weights(path)
        except UserError:
            refused += 1
        else:
            assert file.info == clean.info
            assert file.state_dict.keys() == clean.state_dict.keys()
            assert all(torch.equal(tensor, clean.state_dict[name]) for name, tensor in file.state_dict.items())
    assert refused > 40


def test_foreign_files(tmp_path: Path) -> None:
    def file(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    assert_refused(file("page.pth", b"<!DOCTYPE html><html><body>404: not found</body></html>"))
    assert_refused(file("page.safetensors", b"<!DOCTYPE html><html><body>404: not found</body></html>"))
    assert_refused(file("numbers.pth", bytes(range(256)) * 100))
    assert_refused(tmp_path, says="a folder")
    assert_refused(tmp_path / "absent.pth", says="no such weights file")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    assert_refused(tmp_path / "list.pth", says="has no weights")
    torch.save({"model": {}, "epoch": 3}, tmp_path / "empty.pth")
    assert_refused(tmp_path / "empty.pth", says="has no weights")
    with zipfile.ZipFile(tmp_path / "archive.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert_refused(tmp_path / "archive.pth", says="another archive")


def test_a_program_is_not_loaded(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, tmp_path / "x.pt2")
    (tmp_path / "x.pth").write_bytes((tmp_path / "x.pt2").read_bytes())
    assert_refused(tmp_path / "x.pt2", says="a program")
    assert_refused(tmp_path / "x.pth", says="a program")


def test_another_architecture(tmp_path: Path) -> None:
    swin = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
    torch.save({"model": swin.state_dict()}, tmp_path / "swin.pth")
    assert_refused(tmp_path / "swin.pth", says="not the weights of this model")
    with pytest.raises(UserError, match="not the weights of a known model"):
        read_info(tmp_path / "swin.pth")
    save_file(swin.state_dict(), tmp_path / "swin.safetensors")
    assert_refused(tmp_path / "swin.safetensors", says="not the weights of this model")
    assert_refused(PTH, says="not the weights of this model")


MEASURE = """
import resource, sys
from stvit_cli import create_model
from stvit_cli.models.weights.file import load_weights, save_weights, read_weights, describe

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

model = create_model("stvit-l") if sys.argv[2] == "load" else None
before = peak()
if model is not None:
    load_weights(model, sys.argv[1])
else:
    file = read_weights(sys.argv[1])
    save_weights(sys.argv[1] + ".safetensors", file.state_dict, describe(file))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["load", "convert"])
def test_memory_stays_near_the_size_of_the_file(tmp_path: Path, published: Published, what: str) -> None:
    path = tmp_path / "stvit-l.pth"
    weights = published(create_model("stvit-l").state_dict())
    torch.save({"model": weights, "optimizer": {"state": {0: {"exp_avg": torch.zeros(10_000_000)}}}}, path)
    done = subprocess.run([sys.executable, "-c", MEASURE, path, what], capture_output=True, text=True, check=True)
    assert int(done.stdout) < path.stat().st_size + 200e6
