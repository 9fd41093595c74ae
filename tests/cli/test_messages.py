"""Every message of a wrong command, as the user reads it, in one file reviewed in diffs: ``messages.txt`` beside this one.

``pytest tests/cli/test_messages.py --update-messages`` writes it again. A message belongs here when a file, a key or a word of
the command line can cause it; what takes a full disk, a dying process or a GPU is tested where it is decided.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from helpers import bad_files

SNAPSHOT = Path(__file__).with_name("messages.txt")

COMMANDS: dict[str, list[str]] = {
    "Command line": [
        "trian",
        "recipes shw",
        "train --recpie quickstart",
        "train --recipe",
        "recipes show",
        "finetune --recipe finetune384",
        "predict good.png --weights good.safetensors --top 0",
        "predict good.png --weights good.safetensors --top many",
        "predict good.png --weights good.safetensors --score-threshold 2",
        "profile stvit-s --batch-size 0",
        "export good.safetensors x.onnx --precision fp8",
    ],
    "Recipes": [
        "train",
        "train --recipe quikstart",
        "train --recipe mine.yaml",
        *(f"recipes check {name}.yaml" for name in (*bad_files.RECIPES, "latin", "folder")),
        "recipes copy quickstart file",
        "recipes copy quickstart nowhere/mine.yaml",
    ],
    "Overrides": [
        *(
            f"recipes check quickstart {shlex.quote(words)}" if " " not in words else f"recipes check quickstart {words}"
            for words in (
                "optim.lrr=1",
                "optim",
                "optim=1",
                "optim.lr",
                "optim.lr=fast",
                "optim.lr=-1",
                "optim.lr=1,5",
                "optim.lr=1 optim.lr=2",
                "optim.betas=[0.9]",
                "optim.betas=[0.9,1.5]",
                "base=deit300",
                "task=pose",
                "data.kind=coco",
                "data.mean=[123.7]",
                "data.mean=[0.5,0.5]",
                "data.std=[0]",
                "data.image_size=16",
                "data.image_size=100000",
                "eval.crop_pct=0.01",
                "model.grid_sizes=[8,4,1]",
                "model.grid_sizes=[999,4,1,1]",
                "model.num_iters=11",
                "model.pos_enc=0",
                "model.layer_scale=-1",
                'model.kwargs={"depth":2}',
                "model.name=timm/test_vit 'model.kwargs={embed_dims: 48}'",
                "model.name=timm/test_vit 'model.kwargs={num_classes: 2}'",
                "model.name=timm/test_vit 'model.kwargs={checkpoint_path: x}'",
                "model.name=timm/test_vit 'model.kwargs={num_heads: 5}'",
                "model.name=timm/test_vit model.kwargs={num_heads:5}",
                "augment.crop_scale=[1,0.5]",
                "augment.crop_ratio=[2,1]",
                "augment.interpolation=lanczos",
                "schedule.warmup_epochs=99",
                "schedule.steps=10 schedule.warmup_steps=10",
                "schedule.milestones=[3]",
                "schedule.min_lr=1",
                "schedule.warmup_lr=1",
                "segmentation.window=512",
                "train.compile=maybe",
            )
        ),
        "recipes check coco-mask-rcnn-1x augment.repeats=3",
        "recipes check coco-mask-rcnn-1x model.in_chans=1 data.mean=[0.5] data.std=[0.5]",
        "recipes check coco-mask-rcnn-1x detection.long_side=100",
        "recipes check coco-mask-rcnn-1x optim.layer_decay=0.9",
        "recipes check ade20k-upernet-160k segmentation.scale_range=[2,1]",
        "recipes check ade20k-upernet-160k segmentation.class_names=[a,a]",
        "train --recipe quickstart --model stvit-x",
        "train --recipe quickstart --data a data.dir=b",
        "train --recipe quickstart --data empty",
        "train --recipe own-boxes --data two-classes",
    ],
    "Output": [
        "train --recipe quickstart --output full",
        "train --recipe quickstart --output file",
        "train --recipe quickstart --output file/run",
        "train --recipe quickstart --output run",
        "train --recipe quickstart --json empty",
        "train --recipe quickstart --json nowhere/metrics.json",
        "predict good.png --weights good.safetensors --output file",
        "export good.safetensors model.tflite",
        "export good.safetensors file/model.onnx",
        "export good.safetensors model.onnx --calibrate empty",
        "export good.safetensors model.onnx --precision int8",
        "export good.safetensors model.onnx --precision int8 --calibrate empty",
        "export good.safetensors model.safetensors --precision int8",
        "convert nano.pth nano.pth",
        "convert nano.pth file/nano.safetensors",
    ],
    "Image folders": [
        "train --recipe quickstart data.kind=imagefolder",
        *(
            f"train --recipe quickstart data.kind=imagefolder --data {name}"
            for name in (
                "nowhere",
                "emty",
                "empty",
                "file",
                "flat",
                "one-class",
                "single",
                "hollow",
                "differing",
                "no-val",
                "no-train",
            )
        ),
        "train --recipe quickstart data.kind=imagefolder --data two-classes data.val_fraction=0",
        "train --recipe quickstart data.kind=imagefolder --data two-classes 'data.group_by=('",
        "train --recipe quickstart data.kind=imagefolder --data two-classes data.group_by=patient",
        "train --recipe quickstart data.kind=imagefolder --data two-classes data.group_by=png",
        "train --recipe quickstart data.kind=imagefolder --data two-classes "
        "train.global_batch_size=8 train.batch_size_per_device=3",
        "train --recipe quickstart data.kind=imagefolder --data two-classes train.global_batch_size=8 train.device=cuda",
        "eval --weights good.safetensors --data other-classes",
    ],
    "Images": [
        f"predict {name} --weights good.safetensors"
        for name in (
            "missing.png",
            "god.png",
            "dangling.png",
            "empty",
            "text.jpg",
            "zero.png",
            "truncated.png",
            "text.jpg good.png",
        )
    ],
    "Weights": [
        *(
            f"predict good.png --weights {name}"
            for name in (
                "missing.safetensors",
                "godo.safetensors",
                "two-classes",
                "file",
                "zero.safetensors",
                "truncated.safetensors",
                "damaged.safetensors",
                "3-names.safetensors",
                "no-model.safetensors",
                "huge.safetensors",
                "incomplete.safetensors",
                "backbone.safetensors",
                "zero.pth",
                "text.pth",
                "foreign.pth",
                "code.pth",
            )
        ),
        "eval --weights good.safetensors",
        "eval --weights good.safetensors --model stvit-s --data two-classes",
        "finetune --recipe quickstart --weights missing.pth",
        "finetune --recipe quickstart --weights good.safetensors --model stvit-s",
        "finetune --recipe quickstart --weights foreign.pth",
        "convert foreign.pth new.safetensors",
        "convert foreign.pth new.safetensors --from ema",
        "convert nano.pth new.pth",
    ],
    "Runs": [
        "eval",
        "eval nowhere",
        "eval empty",
        "eval run --weights good.safetensors",
        "eval run-without-weights",
        "train --resume nowhere",
        "train --resume empty",
        "train --resume file",
        "train --resume run --output new",
        "train --resume run --recipe quickstart",
        "train --resume run optim.lr=1",
        "train --resume run --from-step 3 --output new",
        "train --from-step 3",
        "train --resume run-without-checkpoints",
        "train --resume run-damaged",
    ],
    "COCO files": [
        *(
            "train --recipe shapes-mask-rcnn --data coco/no-files data.kind=coco detection.train_images=val2017 "
            f"detection.val_json=null {words}"
            for words in ("data.val_fraction=0.2", "data.val_fraction=0", "data.group_by=patient")
        ),
        *(
            f"train --recipe shapes-mask-rcnn --data coco/{name} data.kind=coco train.global_batch_size=1 data.num_workers=0"
            for name in (
                "nowhere",
                "no-json",
                "no-files",
                "list",
                "no-categories",
                "no-images",
                "no-annotations",
                "same-name-twice",
                "wide-image",
                "another-size",
                "escaping",
                *bad_files.COCO,
            )
        ),
    ],
    "Label maps": [
        f"train --recipe shapes-upernet data.kind=ade20k train.global_batch_size=1 data.num_workers=0 --data maps/{name}"
        for name in ("nowhere", "missing", "unpaired", "too-large-number", "other-size", "colours")
    ],
    "Profile": [
        "profile stvit-x",
        "profile stvit-s --image-size 8",
        "profile stvit-s --image-size big",
        "profile stvit-s --recipe deit300 --throughput",
    ],
    "Associations": [
        *(
            f"visualize-associations good.png --weights good.safetensors --output new {words}"
            for words in (
                "--point 99,0",
                "--point x",
                "--layers stage9",
                "--image-size 8",
                "--labels text.jpg",
                "--labels zero.png",
            )
        ),
        "visualize-associations missing.png --output new",
        "visualize-associations good.png --model stvit-x --output new",
        "visualize-associations good.png --model isotropic-mini-swin-20 --output new",
        "visualize-associations good.png --weights missing.pth --output new",
    ],
    "Ablation": [
        "ablate",
        "ablate quickstart",
        "ablate quickstart optim.lrs=1,2",
        "ablate quickstart train.seed=1,2",
        "ablate quickstart model.num_iters=null,1",
        "ablate --resume empty",
        "isotropic-ablation --rows 99 --recipe isotropic-mini",
        "isotropic-ablation --rows x --recipe isotropic-mini",
        "isotropic-ablation --rows 4",
        "isotropic-ablation --resume empty",
        "isotropic-ablation --recipe quickstart",
        "isotropic-ablation --recipe isotropic-mini --output full",
    ],
    "Reproduce": [
        "reproduce fashion-minst",
        "reproduce --seeds 2",
        "reproduce --collect empty",
        "reproduce fashion-mnist --collect nowhere",
        "reproduce fashion-mnist --collect empty",
        "reproduce fashion-mnist --collect empty --seeds 2",
    ],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    bad_files.write_all()
    return tmp_path


def test_messages_are_those_in_the_snapshot(stvit, folder: Path, pytestconfig: pytest.Config) -> None:
    before = sorted(folder.rglob("*"))
    pages: list[str] = []
    for section, commands in COMMANDS.items():
        pages.append(f"## {section}\n")
        for command in commands:
            ended = stvit(*shlex.split(command))
            said = _without_paths(ended.err, folder)
            assert ended.code == 2, f"stvit {command}: exit code {ended.code}\n{said}"
            message = said[said.index("stvit: ") :]
            assert 1 <= len(message.splitlines()) <= 6, f"stvit {command}: {message}"
            pages.append(f"$ stvit {command}\n{message}")
    assert sorted(folder.rglob("*")) == before, "a refused command leaves nothing behind"
    text = "\n".join(pages)
    if pytestconfig.getoption("--update-messages"):
        SNAPSHOT.write_text(text, encoding="utf-8")
    assert text == SNAPSHOT.read_text(encoding="utf-8"), "if the new messages are right: pytest --update-messages"


def _without_paths(text: str, folder: Path) -> str:
    """Put names for what differs from machine to machine."""
    text = text.replace(f"{folder}", "FOLDER").replace(str(Path.home()), "HOME")
    return re.sub(r"\d{8}-\d{6}", "TIME", text)
