"""The schema of a recipe: every setting of a run, its default and its meaning, in one place. Imports no torch.

A recipe file holds only what differs from these defaults. Sections are frozen; unknown keys are refused.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelSection(Section):
    name: str = "stvit-s"
    """One of `stvit_cli.list_models()`."""
    in_chans: PositiveInt = 3
    """Channels of a picture."""
    drop_path_rate: Rate | dict[str, Rate] = 0.0
    """Largest rate of stochastic depth: one figure, or one for each model's name."""
    grid_sizes: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] | None = None
    """Super-token cell of each stage, in tokens; none is the model's own (8 4 1 1)."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


class DataSection(Section):
    kind: Literal["digits", "imagefolder"] = "imagefolder"
    """digits: the embedded handwritten digits. imagefolder: pictures by class, `train/` and `val/` or one folder."""
    dir: str | None = None
    """The folder of the data set; `--data` sets it."""
    image_size: PositiveInt = 224
    """Side of the square picture the model sees, in pixels."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    val_fraction: Rate = 0.2
    """Share of each class held out where the folder has no `train/` and `val/`."""
    num_workers: Annotated[int, Field(ge=0)] = 8
    """Loader processes for each training process; never more than there are cores."""
    unreadable: Literal["stop", "skip"] = "stop"
    """A picture that cannot be decoded in training: stop and name it, or skip and count it. In evaluation always stop."""


class AugmentSection(Section):
    """Off by default; the values of DeiT are in the recipe deit300."""

    crop_scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Share of the area that a random resized crop keeps; 1.0 1.0 keeps the whole picture."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    hflip: Fraction = 0.5
    auto_augment: str | None = None
    """timm's policy string, e.g. rand-m9-mstd0.5-inc1."""
    random_erasing: Fraction = 0.0
    """Probability of erasing a rectangle."""
    random_erasing_mode: Literal["pixel", "const", "rand"] = "pixel"
    mixup: NonNegative = 0.0
    """Alpha of the beta distribution; 0 is off."""
    cutmix: NonNegative = 0.0
    """Alpha of the beta distribution; 0 is off."""
    mix_prob: Fraction = 1.0
    """Probability that a batch is mixed at all."""
    mix_switch_prob: Fraction = 0.5
    """Probability of CutMix where both are on."""
    label_smoothing: Fraction = 0.0
    repeats: PositiveInt = 1
    """Views of each picture in one epoch (repeated augmentation); an epoch's length stays the data set's."""


class OptimSection(Section):
    """AdamW."""

    lr: Annotated[float, Field(gt=0)] = 1e-3
    scale_lr_from: PositiveInt | None = None
    """Where set, the rate used is lr x global batch / this."""
    weight_decay: NonNegative = 0.05
    betas: tuple[Rate, Rate] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = None
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor on the rate from each layer to the one before it."""


class ScheduleSection(Section):
    kind: Literal["cosine", "constant"] = "cosine"
    epochs: PositiveInt = 300
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    warmup_lr: NonNegative = 1e-6
    min_lr: NonNegative = 1e-5
    update: Literal["epoch", "step"] = "epoch"
    """How often the rate is set."""


class TrainSection(Section):
    global_batch_size: PositiveInt = 1024
    """Pictures in one optimiser step, over all processes and accumulation."""
    batch_size_per_device: PositiveInt | Literal["auto"] = "auto"
    """Pictures in one forward pass of one process; auto: the whole share on a CPU, as many as fit on a GPU."""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    """torch.compile, a block at a time."""
    sync_bn: bool = False
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    eval_every_epochs: PositiveInt = 1
    log_every_steps: PositiveInt = 10
    tensorboard: bool = False


class CheckpointSection(Section):
    every_steps: PositiveInt | None = None
    every_minutes: Annotated[float, Field(gt=0)] | None = 10.0
    """A checkpoint is also written after every epoch that is evaluated, and at an interruption."""
    keep: PositiveInt = 2


class FinetuneSection(Section):
    freeze_norm: bool = False
    """Batch norms keep their statistics and drop path is off, as in the authors' fine-tuning."""
    freeze_backbone: bool = False
    """Linear probing: only the classifier trains."""


class EvalSection(Section):
    batch_size: PositiveInt = 64
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    """Side of the centre crop by the resized side; none: 224/256 at 224 and below, 1 above (DeiT)."""


class Recipe(Section):
    name: str = ""
    """The file's name without its ending; set on loading."""
    description: str = ""
    task: Literal["classification"] = "classification"
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    augment: AugmentSection = AugmentSection()
    optim: OptimSection = OptimSection()
    schedule: ScheduleSection = ScheduleSection()
    train: TrainSection = TrainSection()
    checkpoint: CheckpointSection = CheckpointSection()
    finetune: FinetuneSection = FinetuneSection()
    eval: EvalSection = EvalSection()
