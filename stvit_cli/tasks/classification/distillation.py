"""Knowledge distillation as in DeiT (Touvron et al., arXiv 2012.12877): a trained teacher sees the images that the student sees.

DeiT compares the teacher with a distillation token; these models have none, so both parts of the loss train the class logits.
B batch, C channels, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from stvit_cli.errors import UserError
from stvit_cli.models import create_model
from stvit_cli.models.options import options_of
from stvit_cli.models.weights.file import WeightsInfo, describe, load_weights, read_weights
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.weights import weights_file
from stvit_cli.utils.text import did_you_mean, first_line, printable

TIMM = "timm/"
"""Start of the name of a pretrained model of timm."""


def distillation_loss(logits: Tensor, teacher_logits: Tensor, kind: Literal["soft", "hard"], temperature: float) -> Tensor:
    """Return DeiT's distillation loss.

    Args:
        logits: of the student, (B, K).
        teacher_logits: (B, K).
        kind: soft: the Kullback-Leibler divergence of the softened distributions, as in DeiT the mean over images and classes.
            hard: the cross-entropy with the class that the teacher predicts.
        temperature: what soft divides the logits by.

    >>> distillation_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.0]]), "soft", 3.0)
    tensor(0.)
    """
    logits, teacher_logits = logits.float(), teacher_logits.float()
    if kind == "hard":
        return F.cross_entropy(logits, teacher_logits.argmax(1))
    own, teacher = (F.log_softmax(values / temperature, 1) for values in (logits, teacher_logits))
    return F.kl_div(own, teacher, reduction="sum", log_target=True) * temperature**2 / logits.numel()


class Teacher:
    """A trained classifier that sees the student's images in its own normalization and size.

    Args:
        model: from images (B, C, H, W) to logits (B, K); kept in evaluation mode.
        student: mean and standard deviation of the images that are given.
        own: those that the model was trained with.
        image_size: the side of the model's images.
        class_order: for each class of the student its index in the model's; None: the same order.
    """

    def __init__(
        self,
        model: nn.Module,
        student: tuple[Sequence[float], Sequence[float]],
        own: tuple[Sequence[float], Sequence[float]],
        image_size: int,
        class_order: Sequence[int] | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        (mean, std), (own_mean, own_std) = ([torch.tensor(values)[:, None, None] for values in pair] for pair in (student, own))
        self.scale, self.shift = std / own_std, (mean - own_mean) / own_std
        self.image_size, self.class_order = image_size, class_order

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) of normalized images (B, C, H, W), in the student's order of classes."""
        if self.scale.device != images.device:
            self.model.to(images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.scale, self.shift = self.scale.to(images.device), self.shift.to(images.device)
        images = images * self.scale + self.shift
        if images.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            images = F.interpolate(images.float(), size, mode="bicubic", antialias=True, align_corners=False)
        logits: Tensor = self.model(images)
        return logits if self.class_order is None else logits[:, list(self.class_order)]


def load_teacher(recipe: Recipe, class_names: Sequence[str]) -> Teacher:
    """Load ``distill.teacher`` for a student with these classes.

    Raises:
        UserError: there is no such teacher, it is another one than the run was started with, or it has other classes.
    """
    name = recipe.distill.teacher
    assert name is not None
    digest = recipe.distill.teacher_sha256
    if digest is not None and teacher_digest(name) != digest:
        raise UserError(
            f"distill.teacher: {name} has other weights than when the run was started (distill.teacher_sha256).\n"
            "Put the teacher's file back, or start another run."
        )
    names: Sequence[str] = ()
    student = (recipe.data.mean, recipe.data.std)
    if name.startswith(TIMM):
        model = _timm_model(name)
        config = resolve_model_data_config(model)
        in_chans, size = config["input_size"][0], config["input_size"][-1]
        own, num_classes = (config["mean"], config["std"]), int(model.num_classes)  # type: ignore[arg-type]
    else:
        model, info = _saved_model(name)
        in_chans, size = info.in_chans, info.image_size
        own, names, num_classes = (info.mean, info.std), info.class_names, info.num_classes
    if in_chans != recipe.model.in_chans:
        raise UserError(f"distill.teacher: {name} takes images of {in_chans} channels, the model of {recipe.model.in_chans}.")
    return Teacher(model, student, own, size, _class_order(name, names, num_classes, class_names))


def teacher_digest(name: str) -> str:
    """Return the SHA-256 of a teacher's weights: of its file, or of a timm model's tensors.

    Raises:
        UserError: there is no such teacher.
    """
    if not name.startswith(TIMM):
        path = weights_file(Path(name))
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"distill.teacher: {printable(name)} cannot be read: {error.strerror}.") from error
    digest = hashlib.sha256()
    for key, tensor in sorted(_timm_model(name).state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def resolve_teacher(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Write the teacher's hash into the recipe of a new run, and its path as an absolute one; see `tasks.resolve`."""
    section = recipe.distill
    if section.teacher is None:
        return recipe, []
    name = section.teacher
    if not name.startswith(TIMM):
        name = str(weights_file(Path(name).expanduser()).resolve())
    digest = teacher_digest(name)
    changed = section.model_copy(update={"teacher": name, "teacher_sha256": digest})
    note = f"Teacher: {name} (SHA-256 {digest[:12]}), {section.kind} distillation with a weight of {section.alpha:g}."
    return recipe.model_copy(update={"distill": changed}), [note]


def _timm_model(name: str) -> nn.Module:
    own_name = name.removeprefix(TIMM)
    if not timm.is_model(own_name):
        guess = did_you_mean(own_name, (name.partition(".")[0] for name in timm.list_models(pretrained=True)))
        raise UserError(f"distill.teacher: timm has no model {printable(own_name)!r}.{guess}")
    try:
        model: nn.Module = timm.create_model(own_name, pretrained=True)
    except (RuntimeError, OSError, ValueError) as error:
        reason = first_line(error)[:200]
        raise UserError(
            f"distill.teacher: the weights of {name} cannot be had: {reason}\n"
            "Download them where there is a network (timm's cache can be copied), or give a run directory or a weights file."
        ) from error
    return model


def _saved_model(name: str) -> tuple[nn.Module, WeightsInfo]:
    file = read_weights(weights_file(Path(name)))
    info = describe(file)
    if info.task != "classification" or not info.num_classes:
        raise UserError(f"distill.teacher: {file.path} is no classifier; expected a run or a weights file of one.")
    model = create_model(info.model, info.num_classes, info.in_chans, image_size=info.image_size, **options_of(info))
    load_weights(model, file)
    return model, info


def _class_order(name: str, names: Sequence[str], num_classes: int, class_names: Sequence[str]) -> list[int] | None:
    if num_classes == len(class_names) and (not names or tuple(names) == tuple(class_names)):
        return None
    if set(names) == set(class_names) and len(names) == len(class_names):
        return [list(names).index(own) for own in class_names]
    lacking = [own for own in class_names if own not in names] if names else []
    detail = f", such as no {lacking[0]!r}" if lacking else ""
    raise UserError(
        f"distill.teacher: {name} has {num_classes} classes, the data {len(class_names)}, and they are others{detail}.\n"
        "A teacher has to know the classes: train it on these data first, and give its run directory."
    )
