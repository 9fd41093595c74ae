"""The schema of a recipe: every setting of a run, its default and its meaning, in one place. Imports no torch.

A recipe file holds only what differs from these defaults. Sections are frozen; unknown keys are refused, and so is a value of
another type ("3" or true where a number belongs). `recipe.io` reads and writes recipes; what it says to the user about a key
is made of the annotations here.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stvit_cli.recipe.dense_tasks import DetectionSection, SegmentationSection, ShapesSection
from stvit_cli.recipe.field_types import Fraction, Interpolation, NonNegative, PositiveInt, Rate, Section
from stvit_cli.recipe.validation import contradictions

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ModelSection(Section):
    """The backbone."""

    name: str = "stvit-s"
    """One of `stvit_cli.list_models()`."""
    in_chans: PositiveInt = 3
    """Channels of an image."""
    drop_path_rate: Rate | dict[str, Rate] = 0.0
    """Largest rate of stochastic depth: one figure, or one for each model's name."""
    grid_sizes: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] | None = None
    """Super-token cell of each stage, in tokens; none is the model's own (8 4 1 1)."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


class DataSection(Section):
    """The data set and how its images are read."""

    kind: Literal["digits", "imagefolder", "coco", "ade20k", "shapes"] = "imagefolder"
    """digits: the embedded handwritten digits. imagefolder: images by class, `train/` and `val/` or one folder. coco: COCO's
    layout. ade20k: images and label maps in folders, as ADE20K has them. shapes: drawn scenes with exact boxes, masks and
    label maps."""
    dir: str | None = None
    """The folder of the data set; `--data` sets it."""
    image_size: Annotated[int, Field(ge=32)] = 224
    """Side of the square image the model sees, in pixels."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Subtracted from the channels of an image in 0..1; a figure for each channel."""
    std: tuple[float, ...] = IMAGENET_STD
    """What the channels are then divided by."""
    val_fraction: Rate = 0.2
    """Share of each class held out where the folder has no `train/` and `val/`."""
    num_workers: Annotated[int, Field(ge=0)] = 8
    """Loader processes for each training process; never more than there are cores."""
    unreadable: Literal["stop", "skip"] = "stop"
    """An image that cannot be decoded in training: stop and name it, or skip and count it. In evaluation always stop."""


class AugmentSection(Section):
    """Off by default; the values of DeiT are in the recipe deit300."""

    crop_scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Share of the area that a random resized crop keeps; 1.0 1.0 keeps the whole image."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width by height of the crop, smallest and largest."""
    interpolation: Interpolation = "bicubic"
    """How images are resized, in training and in evaluation."""
    hflip: Fraction = 0.5
    """Probability of mirroring left and right."""
    auto_augment: str | None = None
    """timm's policy string, e.g. rand-m9-mstd0.5-inc1."""
    random_erasing: Fraction = 0.0
    """Probability of erasing a rectangle."""
    random_erasing_mode: Literal["pixel", "const", "rand"] = "pixel"
    """What the rectangle is filled with: noise for each pixel, zero, or one random colour."""
    mixup: NonNegative = 0.0
    """Alpha of the beta distribution; 0 is off."""
    cutmix: NonNegative = 0.0
    """Alpha of the beta distribution; 0 is off."""
    mix_prob: Fraction = 1.0
    """Probability that a batch is mixed at all."""
    mix_switch_prob: Fraction = 0.5
    """Probability of CutMix where both are on."""
    label_smoothing: Fraction = 0.0
    """Share of the target spread over all classes."""
    repeats: PositiveInt = 1
    """Views of each image in one epoch (repeated augmentation); an epoch's length stays the data set's."""


class OptimSection(Section):
    """AdamW."""

    lr: Annotated[float, Field(gt=0)] = 1e-3
    """The rate after warm-up."""
    scale_lr_from: PositiveInt | None = None
    """Where set, the rate used is lr x global batch / this."""
    weight_decay: NonNegative = 0.05
    """Not on biases and other one-dimensional weights."""
    decay_layer_scale: bool = False
    """In classification, decay the gammas of layer scale too (stvit-b, stvit-l), as the authors' code does: they have four
    dimensions there. Detection and segmentation decay all but norms in any case."""
    betas: tuple[Rate, Rate] = (0.9, 0.999)
    """AdamW's decay of the first and second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's epsilon."""
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the whole gradient; none: not clipped."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor on the rate from each layer to the one before it."""


class ScheduleSection(Section):
    """Length of the run and the learning rate over it."""

    kind: Literal["cosine", "constant", "step", "poly"] = "cosine"
    """The rate's course after warm-up; step: a tenth at each of the milestones; poly: by the power of what is left of the run."""
    epochs: PositiveInt = 300
    """Passes over the training set, warm-up included."""
    steps: PositiveInt | None = None
    """The run's length in steps, in place of epochs."""
    milestones: tuple[PositiveInt, ...] = ()
    """With kind step: the epochs after which the rate falls to a tenth."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs in which the rate grows linearly from warmup_lr."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """The same in steps, in place of warmup_epochs."""
    warmup_lr: NonNegative = 1e-6
    """The rate at the very start, where there is a warm-up."""
    min_lr: NonNegative = 1e-5
    """The rate at the end of cosine and poly."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """With kind poly: the power; 1 is a straight line."""
    update: Literal["epoch", "step"] = "epoch"
    """How often the rate is set."""


class TrainSection(Section):
    """Batches, hardware, evaluation and logging of the run."""

    global_batch_size: PositiveInt = 1024
    """Images in one optimiser step, over all processes and accumulation."""
    batch_size_per_device: PositiveInt | Literal["auto"] = "auto"
    """Images in one forward pass of one process; auto: the whole share on a CPU, as many as fit on a GPU."""
    seed: int = 0
    """All randomness follows from it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 by autocast; fp16 with a loss scaler."""
    compile: bool = False
    """torch.compile, a block at a time."""
    kernels: bool | Literal["auto"] = "auto"
    """Our own kernels, C++ on a CPU and Triton on a GPU; auto: on a CPU, where there is a compiler."""
    sync_bn: bool = False
    """Batch norms take their statistics over all processes."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep an exponential moving average of the weights with this decay, evaluated beside them; none: do not."""
    eval_every_epochs: PositiveInt = 1
    """Epochs between evaluations; the end is always evaluated."""
    eval_every_steps: PositiveInt | None = None
    """The same in steps, in place of eval_every_epochs."""
    log_every_steps: PositiveInt = 10
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = False
    """Also write TensorBoard events."""


class CheckpointSection(Section):
    """When checkpoints are written and how many are kept."""

    every_steps: PositiveInt | None = None
    """Steps between checkpoints; none: only by the clock and after an evaluation."""
    every_minutes: Annotated[float, Field(gt=0)] | None = 10.0
    """A checkpoint is also written after every epoch that is evaluated, and at an interruption."""
    keep: PositiveInt = 2
    """Checkpoints kept; older ones are deleted."""


class FinetuneSection(Section):
    """What stays frozen when training starts from weights."""

    freeze_norm: bool = False
    """Batch norms keep their statistics and drop path is off, as in the authors' fine-tuning."""
    freeze_backbone: bool = False
    """Linear probing: only the classifier trains."""


class EvalSection(Section):
    """How images are evaluated."""

    batch_size: PositiveInt = 64
    """Images in one forward pass of one process."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    """Side of the centre crop by the resized side; none: 224/256 at 224 and below, 1 above (DeiT)."""


class Recipe(Section):
    """Every setting of a run."""

    name: str = ""
    """The file's name without its ending; set on loading."""
    description: str = ""
    """One line, for `stvit recipes list`."""
    task: Literal["classification", "detection", "segmentation"] = "classification"
    """What is learned."""
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    augment: AugmentSection = AugmentSection()
    optim: OptimSection = OptimSection()
    schedule: ScheduleSection = ScheduleSection()
    train: TrainSection = TrainSection()
    checkpoint: CheckpointSection = CheckpointSection()
    finetune: FinetuneSection = FinetuneSection()
    eval: EvalSection = EvalSection()
    detection: DetectionSection = DetectionSection()
    segmentation: SegmentationSection = SegmentationSection()
    shapes: ShapesSection = ShapesSection()

    @property
    def drop_path_rate(self) -> float:
        """The largest rate of stochastic depth for this recipe's model."""
        rates = self.model.drop_path_rate
        return rates[self.model.name] if isinstance(rates, dict) else rates

    @property
    def peak_lr(self) -> float:
        """The rate after warm-up, scaled to the global batch where the recipe asks for that."""
        if self.optim.scale_lr_from is None:
            return self.optim.lr
        return self.optim.lr * self.train.global_batch_size / self.optim.scale_lr_from

    @model_validator(mode="after")
    def _agree(self) -> Self:
        found = list(contradictions(self))
        if found:
            raise ValueError("\n".join(found))
        return self


PATH_KEYS = ("data.dir", "detection.results_json")
"""The keys that name a file or folder by itself; other paths are below one of these."""

FREE_ON_RESUME = frozenset(
    {
        "name",
        "description",
        "data.dir",
        "data.num_workers",
        "train.batch_size_per_device",
        "train.device",
        "train.log_every_steps",
        "train.tensorboard",
        "checkpoint.every_steps",
        "checkpoint.every_minutes",
        "checkpoint.keep",
        "eval.batch_size",
        "detection.results_json",
        "detection.exif_orientation",  # where it matters and is not set, no image could be opened
    }
)
"""The keys that may differ when a run is resumed: they decide where and how fast it runs, not what is learned."""
