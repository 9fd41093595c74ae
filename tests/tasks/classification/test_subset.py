"""eval.subset: images ranked among some classes of a model, matched by name; finetune.keep_classes: their rows of the head."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.shards import write_shards
from PIL import Image
from torch import nn

from stvit_cli import tasks
from stvit_cli.data.class_subset import match_classes
from stvit_cli.engine.checkpoint import Checkpoint
from stvit_cli.engine.distributed import World
from stvit_cli.engine.evaluation import evaluate_models
from stvit_cli.engine.session import Session, build_session
from stvit_cli.engine.state import RunState, capture, restore
from stvit_cli.errors import UserError
from stvit_cli.models.weights.file import WeightsInfo, read_weights, save_weights
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.classification.task import SubsetEvaluation, load_initial_weights
from stvit_cli.utils.class_lists import class_list

SMALL = [
    *("model.name=stvit-nano", "data.image_size=32", "data.num_workers=0", "train.device=cpu"),
    *("train.global_batch_size=4", "train.kernels=false"),
]


def write_images(root: Path, *names: str, count: int = 2) -> Path:
    generator = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    return root


def build(data: Path, *words: str) -> tasks.Task:
    return tasks.build(recipe_io.from_text("{data: {kind: imagefolder}}", [f"data.dir={data}", *SMALL, *words]))


class Scores(nn.Module):
    """Gives every image the same logits."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), -1)


def evaluate(task: tasks.Task, model: nn.Module) -> dict[str, float]:
    found = evaluate_models(task, {"": model}, World(torch.device("cpu")), batch_size=4, num_workers=0)
    assert found is not None
    return found[""].metrics


def test_imagenet_1k_among_the_classes_of_21k_follows_timm_s_synsets() -> None:
    found = match_classes(class_list("imagenet-1k"), class_list("imagenet-22k"))
    assert (len(found.names), found.lacking) == (999, ("n04399382",))  # teddy: the fall 2011 release does not have it
    assert [class_list("imagenet-22k")[column] for column in found.columns] == list(found.names)
    assert len(match_classes(class_list("imagenet-1k"), class_list("imagenet-21k-p")).names) == 991


def test_logits_of_other_classes_are_left_out(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split in ("train", "val"):
        write_images(data / split, "ant", "bee", "cat", "dog")
    (data / "some.txt").write_text("dog\nemu\nbee\n")
    task = build(data, "eval.subset=some.txt")
    assert isinstance(task.subset, SubsetEvaluation)
    assert task.check_data()[-2:] == [
        "eval.subset: also evaluated on 4 images among 2 of 4 classes.",
        "eval.subset: the model does not have 1 of its 3 classes, whose images are left out: emu.",
    ]
    # Cat is the highest, but of dog and bee it is dog: right for the dogs.
    metrics = evaluate(task, Scores(0.0, 1.0, 3.0, 2.0))
    assert (metrics["num_images"], metrics["top1"]) == (8, 25.0)
    assert (metrics["subset_num_images"], metrics["subset_top1"]) == (4, 50.0)
    expected = -torch.log_softmax(torch.tensor([2.0, 1.0]), 0).mean().item()
    assert metrics["subset_loss"] == pytest.approx(expected)


def test_images_of_the_subset_come_from_a_folder_of_their_own(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_images(tmp_path / "data" / split, "ant", "bee", "cat", "dog")
    other = write_images(tmp_path / "other", "cat", "ant", "wolf", count=3)
    task = build(tmp_path / "data", f"eval.subset_dir={other}")
    metrics = evaluate(task, Scores(1.0, 4.0, 0.0, 3.0))  # of ant and cat it is ant
    assert (metrics["subset_num_images"], metrics["subset_top1"]) == (6, 50.0)
    assert "1 of its 3 classes, whose images are left out: wolf" in task.check_data()[-1]


def test_images_of_the_subset_come_from_shards_whose_numbers_count_along_the_list(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_images(tmp_path / "data" / split, "ant", "bee", "cat", "dog")
    (tmp_path / "data" / "some.txt").write_text("dog\nbee\nowl\n")
    write_shards(tmp_path / "shards", split="val", shards=1, images=5)  # classes 0, 1, 2, 0, 1
    task = build(tmp_path / "data", f"eval.subset_dir={tmp_path / 'shards'}", "eval.subset=some.txt")
    metrics = evaluate(task, Scores(9.0, 4.0, 9.0, 3.0))  # of dog and bee it is bee
    assert (metrics["subset_num_images"], metrics["subset_top1"]) == (4, 50.0)


def test_subsets_that_cannot_be_evaluated_say_why(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_images(tmp_path / split, "ant", "bee")
    with pytest.raises(UserError, match=r"eval\.subset: of its 1000 classes .* the model has 0; at least two"):
        build(tmp_path, "eval.subset=imagenet-1k")
    with pytest.raises(UserError, match=r"eval\.subset: there is no file .*Did you mean 'imagenet-1k'"):
        build(tmp_path, "eval.subset=imagenet1k")
    with pytest.raises(UserError, match="nowhere"):
        build(tmp_path, "eval.subset_dir=nowhere")


def test_a_resumed_run_keeps_its_subset_or_leaves_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split in ("train", "val"):
        write_images(data / split, "ant", "bee", "cat")
    (data / "some.txt").write_text("cat\nant\n")
    (data / "same.txt").write_text("ant\ncat\n")
    (data / "other.txt").write_text("bee\nant\n")
    words = (*SMALL, "schedule.epochs=1", "train.report=false")

    def session(*more: str) -> Session:
        recipe = recipe_io.from_text("{data: {kind: imagefolder}}", [f"data.dir={data}", *words, *more])
        return build_session(tasks.build(recipe), recipe, World(torch.device("cpu")))

    begun = session("eval.subset=some.txt")
    groups, content = capture(begun, RunState(), 0)
    saved = Checkpoint(tmp_path, 0, groups, json.loads(json.dumps(content)))
    for fits in ("eval.subset=same.txt", "eval.subset=null"):
        restore(session(fits), saved)
    with pytest.raises(UserError, match="names other classes or images than before"):
        restore(session("eval.subset=other.txt"), saved)
    # A run that is resumed without it keeps in mind of which one its metrics are.
    restore(without := session("eval.subset=null"), saved)
    groups, content = capture(without, RunState(), 0)
    without_saved = Checkpoint(tmp_path, 0, groups, json.loads(json.dumps(content)))
    restore(session("eval.subset=same.txt"), without_saved)
    with pytest.raises(UserError, match="names other classes or images than before"):
        restore(session("eval.subset=other.txt"), without_saved)
    # Earlier versions hashed the order of the list.
    saved.state["fingerprint"]["subset"] = begun.task.subset_fingerprints()[1]
    restore(session("eval.subset=some.txt"), saved)
    with pytest.raises(UserError, match="names other classes or images than before"):
        restore(session("eval.subset=other.txt"), saved)
    groups, content = capture(session(), RunState(), 0)
    restore(begun, Checkpoint(tmp_path, 0, groups, json.loads(json.dumps(content))))  # a run may get one


def test_folders_by_wordnet_id_train_a_head_of_21_841_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_images(tmp_path / split, "n01440764", "n02084071")
    task = build(tmp_path, "data.class_names_file=imagenet-22k")
    assert task.weights_info().num_classes == 21_841
    names = class_list("imagenet-22k")
    assert {names[task.train_set.images.target(index)] for index in range(4)} == {"n01440764", "n02084071"}
    write_images(tmp_path / "train", "wolf")
    write_images(tmp_path / "val", "wolf")
    with pytest.raises(UserError, match=r"data\.class_names_file: .* none of its 21841 names: wolf"):
        build(tmp_path, "data.class_names_file=imagenet-22k")


@pytest.mark.slow
def test_a_run_evaluates_the_subset_each_time_and_eval_repeats_it(stvit, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split in ("train", "val"):
        write_images(data / split, "ant", "bee", "cat")
    (data / "some.txt").write_text("cat\nant\n")
    words = ["--data", data, "--output", tmp_path / "run", *SMALL, "schedule.epochs=2", "eval.subset=some.txt"]
    ended = stvit("train", "--recipe", "own-images", *words, "train.eval_every_epochs=1")
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    evals = [row for row in rows if row["kind"] == "eval"]
    assert len(evals) == 2
    assert all(row["subset_num_images"] == 4 for row in evals)
    ended = stvit("eval", tmp_path / "run", "--json", tmp_path / "eval.json")
    assert ended.code == 0, ended.err
    again = json.loads((tmp_path / "eval.json").read_text())
    best = json.loads((tmp_path / "run" / "evaluation.json").read_text())["metrics"]
    assert again["subset_loss"] == pytest.approx(best["subset_loss"], abs=1e-5)
    assert "subset top-1" in ended.out


def test_the_classifier_keeps_the_rows_of_classes_with_the_same_name(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    before = build(write_pair(tmp_path / "four", "ant", "bee", "cat", "dog"))
    save_weights(weights, before.model, before.weights_info())
    old = before.model.get_classifier()
    after = build(write_pair(tmp_path / "three", "cat", "bee", "wolf"), "train.seed=1")
    new = after.model.get_classifier().weight[2].clone()
    notes = load_initial_weights(after.model, weights, ("bee", "cat", "wolf"), keep_classes=True)
    assert notes[1] == "The classifier starts from the rows of 2 of the file's 4 classes; 1 are new."
    head = after.model.get_classifier()
    assert torch.equal(head.weight[:2], old.weight[1:3])
    assert torch.equal(head.bias[:2], old.bias[1:3])
    assert torch.equal(head.weight[2], new)
    nameless = tmp_path / "nameless.safetensors"
    save_weights(nameless, before.model, WeightsInfo("stvit-nano", num_classes=4))
    with pytest.raises(UserError, match=r"finetune\.keep_classes: .* does not name its classes"):
        load_initial_weights(after.model, nameless, ("bee", "cat", "wolf"), keep_classes=True)
    same = tuple(read_weights(weights).info.class_names)
    assert len(load_initial_weights(before.model, weights, same, keep_classes=True)) == 1


def write_pair(root: Path, *names: str) -> Path:
    for split in ("train", "val"):
        write_images(root / split, *names)
    return root
