"""Distillation from a trained classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import stvit_cli
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks import build
from stvit_cli.tasks.classification.distillation import Teacher, distillation_loss, load_teacher, resolve_teacher


def softmax(values: np.ndarray) -> np.ndarray:
    exponents = np.exp(values - values.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_distillation_is_deit_s_formula(temperature: float) -> None:
    own, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    p, q = softmax(teacher.double().numpy() / temperature), softmax(own.double().numpy() / temperature)
    expected = temperature**2 * (p * (np.log(p) - np.log(q))).sum() / (5 * 7)  # DeiT divides by the number of logits
    assert distillation_loss(own, teacher, "soft", temperature).item() == pytest.approx(expected, rel=1e-5)


def test_hard_distillation_is_the_cross_entropy_with_the_teacher_s_class() -> None:
    own, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = -np.log(softmax(own.double().numpy())[range(5), teacher.argmax(1).numpy()]).mean()
    assert distillation_loss(own, teacher, "hard", 2.0).item() == pytest.approx(expected, rel=1e-5)


class Seen(nn.Module):
    """Remembers its images; its logits are 0, 1, 2."""

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        return torch.arange(3.0).expand(len(images), 3)


def test_the_teacher_sees_the_images_in_its_own_normalization_size_and_order_of_classes() -> None:
    raw, seen = torch.rand(2, 3, 32, 32), Seen()
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    teacher = Teacher(seen, (mean, std), ((0.1, 0.2, 0.3), (1.0, 0.5, 0.25)), 32, [2, 0, 1])
    logits = teacher((raw - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])
    expected = (raw - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([1.0, 0.5, 0.25])[:, None, None]
    torch.testing.assert_close(seen.images, expected)
    assert logits.tolist() == [[2, 0, 1]] * 2
    larger = Teacher(seen, (mean, std), (mean, std), 48)
    larger(raw)
    assert seen.images.shape == (2, 3, 48, 48)
    torch.testing.assert_close(seen.images.mean((2, 3)), raw.mean((2, 3)), atol=2e-3, rtol=0)


WORDS = {
    "data.kind": "imagefolder",
    "data.image_size": 32,
    "data.num_workers": 0,
    "train.global_batch_size": 8,
    "train.device": "cpu",
    "train.kernels": False,
    "schedule.steps": 2,
    "schedule.warmup_epochs": 0,
    "checkpoint.every_steps": 1,
}


@pytest.fixture(scope="module")
def teacher(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("teacher") / "run"
    stvit_cli.train("quickstart", {**WORDS, "schedule.steps": 1}, data=image_folder, output=run)
    return run


def recipe(image_folder: Path, **distill: Any) -> Recipe:
    words = {**WORDS, "data.dir": image_folder, **{f"distill.{key}": value for key, value in distill.items()}}
    return recipe_io.load("quickstart", [f"{key}={value}" for key, value in words.items()])


def test_a_run_with_a_teacher_trains_and_resumes_with_the_same_one_only(
    teacher: Path, image_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "teacher.safetensors"
    weights.write_bytes((teacher / "best.safetensors").read_bytes())
    words = {**WORDS, "distill.teacher": weights, "distill.kind": "hard", "distill.alpha": 0.25}
    stvit_cli.train("quickstart", words, data=image_folder, output=tmp_path / "run")
    saved = recipe_io.load(tmp_path / "run" / "recipe.yaml").distill
    assert (saved.teacher, saved.kind, len(saved.teacher_sha256 or "")) == (str(weights), "hard", 64)
    plain = build(recipe(image_folder)).model.state_dict().keys()
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    assert load_file(newest / "model.safetensors").keys() == plain  # the teacher is in no checkpoint
    stvit_cli.resume(tmp_path / "run")
    content = load_file(weights)
    name = next(iter(content))
    from safetensors.torch import save_file

    save_file({**content, name: content[name] + 1}, weights)
    with pytest.raises(UserError, match="has other weights than when the run was started"):
        stvit_cli.resume(tmp_path / "run")
    weights.unlink()
    with pytest.raises(UserError, match=r"distill.teacher: .* cannot be read"):
        stvit_cli.resume(tmp_path / "run")


def test_the_loss_is_the_weighted_sum(teacher: Path, image_folder: Path) -> None:
    task = build(recipe(image_folder, teacher=teacher, alpha=0.25, temperature=2))
    plain = build(recipe(image_folder))
    keys = task.train_set
    from stvit_cli.data.sampling import SampleKey

    batch = task.collate([keys[SampleKey(index, 0, 0)] for index in range(4)])
    task.model.eval(), plain.model.eval()
    losses = task.training_loss(task.model, batch)
    assert losses["labels"].item() == pytest.approx(0.75 * plain.training_loss(plain.model, batch)["loss"].item())
    trained = stvit_cli.open_trained(teacher).model
    expected = distillation_loss(task.model(batch["image"]), trained(batch["image"]), "soft", 2.0)
    assert losses["distillation"].item() == pytest.approx(0.25 * expected.item(), rel=1e-4)
    losses["distillation"].backward()
    assert all(parameter.grad is None for parameter in trained.parameters())


def test_a_timm_teacher_has_its_own_mean_std_and_size(monkeypatch: pytest.MonkeyPatch, image_folder: Path) -> None:
    """Without its pretrained weights, which need a network."""
    create = timm.create_model

    def untrained(name: str, pretrained: bool) -> nn.Module:
        torch.manual_seed(0)
        return create(name, num_classes=2)

    monkeypatch.setattr(timm, "create_model", untrained)
    resolved, notes = resolve_teacher(recipe(image_folder, teacher="timm/test_vit"))
    assert "Teacher: timm/test_vit (SHA-256" in notes[0]
    loaded = load_teacher(resolved, ("blue", "red"))
    assert loaded.image_size == 160
    assert loaded(torch.rand(1, 3, 32, 32)).shape == (1, 2)
    assert resolve_teacher(resolved)[0] == resolved


def test_teachers_that_do_not_fit_are_refused(teacher: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: object, class_names: tuple[str, ...] = ("blue", "red")) -> str:
        with pytest.raises(UserError) as caught:
            load_teacher(recipe(image_folder, teacher=name), class_names)
        return str(caught.value)

    assert "timm has no model 'resnet5'. Did you mean 'resnet" in refused("timm/resnet5")
    assert "has 2 classes, the data 2, and they are others, such as no 'green'" in refused(teacher, ("blue", "green"))
    assert "nowhere.safetensors: no such weights file" in refused("nowhere.safetensors")
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: (_ for _ in ()).throw(OSError("no route to host")))
    assert "the weights of timm/resnet50 cannot be had: no route to host\nDownload them" in refused("timm/resnet50")
    assert load_teacher(recipe(image_folder, teacher=teacher), ("red", "blue")).class_order == [1, 0]


def test_settings_without_a_teacher_are_refused(image_folder: Path) -> None:
    with pytest.raises(UserError, match=r"distill.alpha: found 0.3, but there is no teacher; set distill.teacher"):
        recipe(image_folder, alpha=0.3)
