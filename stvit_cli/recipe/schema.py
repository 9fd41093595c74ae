"""The schema of a recipe: every setting of a run with its default and its meaning. Imports no torch.

A recipe file holds only what differs from these defaults. Sections are frozen; unknown keys and values of another type ("3" or
true for a number) are refused. `recipe.io` reads and writes recipes; its messages, and ``stvit recipes show --full``, are made
from the annotations and docstrings here. `recipe.tasks` says which sections belong to which task.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from stvit_cli.recipe.dense_tasks import DetectionSection, SegmentationSection, ShapesSection
from stvit_cli.recipe.field_types import (
    Fraction,
    Interpolation,
    Kwargs,
    LayerScale,
    NonNegative,
    NumIters,
    PositiveInt,
    Rate,
    Section,
)
from stvit_cli.recipe.validation import contradictions
from stvit_cli.utils.views import Views

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ModelSection(Section):
    """The backbone."""

    name: str = "stvit-s"
    """Model name, one of `stvit_cli.list_models()`, or timm/NAME for a model of timm, such as timm/resnet50. auto: when a run
    starts, the model of the weights it starts from, otherwise stvit-s on a GPU and stvit-nano on a CPU."""
    pretrained: bool = False
    """Start from timm's pretrained weights, which are downloaded; only for models of timm. Weights given as a file go first."""
    in_chans: PositiveInt = 3
    """Number of input channels: 3 for RGB, 1 for grey."""
    drop_path_rate: Rate | dict[str, Rate] = 0.0
    """Stochastic depth rate of the last block; it grows linearly from 0 at the first. One number, or one for each model name."""
    grid_sizes: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] | None = None
    """Side of a super token's grid cell in each of the four stages, in tokens. null: the model's own, [8, 4, 1, 1]."""
    num_iters: NumIters | None = None
    """Iterations of super token sampling. 0: average pooling alone, a token belongs to its own cell. null: the model's own, 1."""
    pos_enc: bool | None = None
    """Convolutional position encoding in each block. null: the model's own, true."""
    ffn_conv: bool | None = None
    """The depth-wise convolution of ConvFFN. null: the model's own, true."""
    association_grad: bool | None = None
    """Let the gradient flow through the association of tokens and super tokens. true: slower, as the custom kernels have no such
    gradient. null: the model's own, false, as in the paper."""
    layer_scale: LayerScale | None = None
    """Initial value of layer scale in stages 3 and 4; 0: no layer scale. null: the model's own, 1e-6 in stvit-b and stvit-l."""
    kwargs: Kwargs = Field(default={})
    """Arguments of a model of timm, as timm's --model-kwargs, such as {embed_dim: 48, depths: [2, 2, 2, 2]}."""
    checkpointing: bool = False
    """Activation checkpointing: recompute activations in the backward pass. Saves memory, costs about a third more time."""


class DataSection(Section):
    """The data set and how its images are read."""

    kind: Literal[
        "auto",
        "digits",
        "imagefolder",
        "table",
        "idx",
        "timm",
        "shards",
        "coco",
        "yolo",
        "voc",
        "labelme",
        "cvat",
        "createml",
        "ade20k",
        "shapes",
    ] = "imagefolder"
    """Data set layout. auto: found out when a run starts, from the files in data.dir. digits: the handwritten digits in the
    package. imagefolder: a folder of images for each class, in `train/` and `val/` or side by side. table: paths and labels in
    CSV, TSV, JSON Lines or Parquet. idx: MNIST's files. timm: a data set by timm's name for it. coco: COCO's annotation file
    and images. yolo, voc, labelme, cvat, createml: boxes and polygons in the files of these tools, with their split. ade20k:
    images and label maps in folders, as in ADE20K. shapes: synthetic shapes with exact boxes, masks and label maps, or with the
    labels of what is in an image."""
    dir: str | None = None
    """Folder of the data set, or its table; of shards also a URL, or a pattern such as train-{0000..1023}.tar. `--data` sets
    it."""
    name: str | None = None
    """Kind timm: name of the data set, such as torch/cifar10 or hfds/OWNER/NAME."""
    train_split: str = "train"
    """Kinds idx, timm and shards: the split to train on; of shards also a pattern of file names."""
    val_split: str | None = None
    """Kinds idx and timm: the split to evaluate on, such as t10k for MNIST's test files. null: a part of the training split,
    so that nothing is chosen on test data. Kind shards: a split or a pattern; null: the shards of val or validation, else a
    part."""
    test_split: str | None = None
    """Test images: the best weights are evaluated on them once, when the training is over, and nothing is chosen by them. Kinds
    idx and timm: a split, such as t10k. imagefolder: a folder beside train/, such as test. table: test, for the table or the
    rows of that name, or a file. shards: a split or a pattern. null: none."""
    table: str | None = None
    """Kind table: file of the training images, relative to data.dir. null: found by its name."""
    val_table: str | None = None
    """Kind table: file of the validation images, relative to data.dir. null: found by its name, else the rows whose column
    named split says so, else val_fraction."""
    path_column: str | None = None
    """Kind table: column with the image's path, or the image itself. null: found by its name, such as path or file_name.
    Kind shards: column of Parquet with the image."""
    label_column: str | tuple[str, ...] | None = None
    """Kind table: column with the label, or with multi_label a list of columns of 0 and 1. null: found by its name, such as
    label or class. Kind shards: field of the .json beside an image, or column of Parquet. null: .cls, or a usual name."""
    label_separator: Annotated[str, Field(min_length=1)] | None = None
    """Kind table with multi_label: text between the labels in a cell; a blank stands for any white space. null: found among
    ; | , and white space, in this order."""
    image_dir: str | None = None
    """Kind table: folder that paths are relative to, below data.dir. null: the table's folder, or data.dir."""
    multi_label: bool | None = None
    """Kinds table and shapes: an image has any number of labels. Trained with binary cross-entropy, evaluated by mAP and F1.
    null: false, but labels that look like several in a cell are refused."""
    class_names: tuple[str, ...] = ()
    """Kinds idx and shards: names of the classes, in the order of their numbers. []: those of class_names_file, else of a file
    beside shards (class_names.txt, _info.json), else the numbers."""
    class_names_file: str | None = None
    """Text file with a class name on each line, relative to data.dir: names for labels that are numbers, and the classes in
    order of label maps and of kinds imagefolder, yolo, voc, labelme, cvat and createml. Or a list of ImageNet's classes by name:
    imagenet-1k, imagenet-12k, imagenet-22k (21 841 classes), imagenet-21k-p (10 450). null: none."""
    image_size: Annotated[int, Field(ge=32)] = 224
    """Side of the square input, in pixels; for segmentation that of a training crop, for shapes an image's longer side."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Channel means for normalization, of images in 0..1; one value per channel."""
    std: tuple[float, ...] = IMAGENET_STD
    """Channel standard deviations for normalization, of images in 0..1; one value per channel."""
    val_fraction: Rate = 0.2
    """Fraction of the images held out for validation, of each class, where the data have no split: a folder without `train/` and
    `val/`, detection.val_json null, segmentation.val_images null."""
    group_by: str | None = None
    """Regular expression searched in the path of each image. Images with the same first group, or the same match, are held out
    together, such as ^([^_]+)_ for images named PATIENT_NUMBER. null: each image by itself."""
    shuffle: Literal["global", "block"] = "global"
    """Kind shards: the order of an epoch. global: all images in random order. block: shards in random order, and the images of
    a window within, for storage that is slow at random reads, and for Parquet."""
    shuffle_window: PositiveInt = 8192
    """Kind shards with shuffle block: number of consecutive images that are shuffled with one another."""
    num_workers: Annotated[int, Field(ge=0)] = 8
    """Number of data loader workers per training process; limited to the number of cores."""
    in_memory: bool | Literal["auto"] = "auto"
    """Decode all images when a run of a classifier starts and keep them in memory. The batches are the same to the last bit.
    auto: where they have at most 256 x 256 pixels on average, and take at most an eighth of the free memory and 2 GiB."""
    class_weights: Literal["balanced"] | tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Weight of each class in the loss: a list in the order of the classes, or balanced: images / (classes x images of the
    class), as in scikit-learn. For loss.kind bce they are the weights of a class that is present (pos_weight), and balanced is
    images without the class / images with it. null: none."""
    balance: Fraction = 0.0
    """Balanced sampling: a class of n images is sampled in proportion to n ** (1 - balance). 0: every image once in an epoch.
    1: every class equally often. The number of samples in an epoch stays the same."""
    drop_last: bool = True
    """Leave out the last images of an epoch's order where they do not fill a batch. false: fill that batch with images from the
    start of the order, augmented again."""
    auto_size: bool = False
    """Fit the sizes of images to the data and the device when a run starts: no larger than most images are, smaller on a CPU,
    where the heads of detectors and segmenters become narrower too. The recipe's values are then upper bounds, but for those
    on the command line; the run's recipe has what was chosen."""
    unreadable: Literal["stop", "skip"] = "stop"
    """What to do about a training image that cannot be decoded. stop: end the run and name it. skip: train on another image
    and count it. An evaluation always stops."""


class AugmentSection(Section):
    """Data augmentation. Mostly off by default; DeiT's values are in the recipe deit300."""

    crop_scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Smallest and largest area of the random resized crop, as a fraction of the image's area; [1.0, 1.0] keeps the entire
    image."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio (width / height) of the random resized crop."""
    interpolation: Interpolation = "bicubic"
    """Interpolation for resizing images, in training and evaluation."""
    hflip: Fraction = 0.5
    """Probability of a horizontal flip."""
    vflip: Fraction = 0.0
    """Probability of a vertical flip."""
    color_jitter: NonNegative | tuple[NonNegative, ...] = 0.0
    """Strength of color jitter: one number for brightness, contrast and saturation, or [brightness, contrast, saturation, hue],
    with or without the hue. Applied beside auto_augment too. 0: off."""
    color_jitter_prob: Fraction | None = None
    """Probability of color jitter. null: every image."""
    grayscale_prob: Fraction = 0.0
    """Probability of converting an image to grey."""
    gaussian_blur_prob: Fraction = 0.0
    """Probability of a Gaussian blur."""
    auto_augment: str | None = None
    """timm's auto-augment policy, such as rand-m9-mstd0.5-inc1, or 3a, the three-augment of DeiT III. null: off."""
    random_erasing: Fraction = 0.0
    """Probability of random erasing."""
    random_erasing_mode: Literal["pixel", "const", "rand"] = "pixel"
    """Fill of the erased rectangle. pixel: noise per pixel. const: zeros. rand: one random color."""
    mixup: NonNegative = 0.0
    """Alpha of the beta distribution of mixup; 0: off."""
    cutmix: NonNegative = 0.0
    """Alpha of the beta distribution of CutMix; 0: off."""
    mix_prob: Fraction = 1.0
    """Probability that mixup or CutMix is applied to a batch."""
    mix_switch_prob: Fraction = 0.5
    """Probability of CutMix rather than mixup where both are on."""
    label_smoothing: Fraction = 0.0
    """Label smoothing: part of the target probability that is spread evenly over all classes."""
    repeats: PositiveInt = 1
    """Repeated augmentation: number of views of an image in one epoch. The number of samples in an epoch stays the same."""


class LossSection(Section):
    """The loss of a classifier."""

    kind: Literal["cross-entropy", "bce", "focal"] | None = None
    """cross-entropy; bce: binary cross-entropy of each class, as timm's --bce-loss; focal: the sigmoid focal loss of each class,
    torchvision's. null: cross-entropy, and bce with data.multi_label."""
    bce_sum: bool = False
    """Sum bce over the classes instead of averaging, as timm's --bce-sum."""
    bce_target_thresh: Fraction | None = None
    """bce: targets above this become 1, others 0, after mixup and label smoothing, as timm's --bce-target-thresh. null: off."""
    focal_gamma: NonNegative = 2.0
    """Exponent of the focal loss: larger values give images that are already right a smaller weight."""
    focal_alpha: Fraction | None = 0.25
    """Weight of a class that is present in the focal loss; one that is absent has 1 minus this. null: both have 1."""


class DistillSection(Section):
    """Knowledge distillation of a classifier from a trained one, as in DeiT."""

    teacher: str | None = None
    """Teacher: a run directory or a weights file, or timm/NAME for a pretrained model of timm, with the classes of the data. It
    sees the student's augmented images, in its own normalization and size. null: off."""
    kind: Literal["soft", "hard"] = "soft"
    """soft: the Kullback-Leibler divergence from the teacher's probabilities. hard: cross-entropy with the class that the teacher
    predicts. Both train the class logits: these models have no distillation token."""
    alpha: Fraction = 0.5
    """Weight of distillation in the loss; the labels have 1 - alpha."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature by which soft divides the logits."""
    teacher_sha256: str | None = None
    """Hash of the teacher's weights, which a new run writes into its recipe: a resumed one has to have the same teacher."""


class OptimSection(Section):
    """The optimizer."""

    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate, after warmup."""
    name: str = "adamw"
    """Optimizer, one of `timm.optim.list_optimizers()`: adamw, sgd (with Nesterov momentum; without: momentum), nadamw, lamb,
    lion, adan, adopt, muon, ..."""
    scale_lr_from: PositiveInt | None = None
    """Batch size that lr is given for: the peak learning rate becomes lr x train.global_batch_size / this. null: lr as it is."""
    weight_decay: NonNegative = 0.05
    """Weight decay, not applied to biases and other one-dimensional weights."""
    decay_layer_scale: bool = False
    """Apply weight decay to the layer scale of stvit-b and stvit-l too, in classification, as the authors' code does: theirs
    has four dimensions. Detection and segmentation exempt normalization layers only."""
    betas: tuple[Rate, Rate] = (0.9, 0.999)
    """Decay rates of the first and second moment. Unless this is changed, an optimizer other than AdamW uses its own."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Epsilon, added to the denominator. Unless this is changed, an optimizer other than AdamW uses its own."""
    momentum: Rate = 0.9
    """Momentum, of optimizers that have it, such as sgd."""
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Maximum norm of the gradient of all weights. null: no clipping."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Layer-wise learning rate decay: factor from each layer to the one before it. null: off."""


class ScheduleSection(Section):
    """Length of the run and the learning rate over it."""

    kind: Literal["cosine", "constant", "step", "poly"] = "cosine"
    """LR schedule after warmup. cosine: down to min_lr. constant: lr throughout. step: divided by 10 at each milestone. poly:
    down to min_lr as (1 - progress) ** power."""
    epochs: PositiveInt = 300
    """Number of epochs, including warmup."""
    steps: PositiveInt | None = None
    """Number of steps, including warmup, in place of epochs. null: use epochs."""
    min_steps: PositiveInt | None = None
    """Minimum number of steps where epochs decide: epochs are multiplied when a run starts so that a small set gets that many,
    and with them warmup_epochs, milestones and train.eval_every_epochs. null: no minimum."""
    milestones: tuple[PositiveInt, ...] = ()
    """Epochs after which kind step divides the learning rate by 10."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """Number of epochs in which the learning rate grows linearly from warmup_lr."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Number of warmup steps, in place of warmup_epochs."""
    warmup_lr: NonNegative = 1e-6
    """Learning rate at the first step of warmup."""
    min_lr: NonNegative = 1e-5
    """Learning rate at the end of cosine and poly."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """Exponent of poly; 1 is linear."""
    update: Literal["epoch", "step"] = "epoch"
    """Whether the learning rate changes every epoch or every step."""
    patience: PositiveInt | None = None
    """Early stopping: the number of evaluations without a better main metric after which the run ends; the LR schedule is that
    of the entire run. null: off."""


LoggerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class TrainSection(Section):
    """Batches, hardware, evaluation and logging of the run."""

    global_batch_size: PositiveInt = 1024
    """Number of images in an optimizer step, over all processes and accumulated micro-batches. A run with fewer training images
    takes what there is."""
    batch_size_per_device: PositiveInt | Literal["auto"] = "auto"
    """Number of images in a forward pass of one process. auto: the process's entire part of the batch on a CPU, as many as fit
    into memory on a GPU."""
    seed: int = 0
    """Random seed: of the weights, the order of the samples and the augmentation."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to train on. auto: a CUDA GPU where there is one, otherwise the CPU. mps: an Apple GPU, in one process."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """fp32, or mixed precision by autocast: bf16, or fp16 with loss scaling."""
    compile: bool = False
    """Compile each block with torch.compile."""
    kernels: bool | Literal["auto"] = "auto"
    """Use custom fused kernels: C++ on a CPU, Triton on a GPU. auto: on a CPU with AVX2 or AVX-512 that has a compiler; on a
    GPU where a measurement, made once on each GPU, finds them faster."""
    sync_bn: bool = False
    """Synchronize batch norm statistics over all processes."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average (EMA) of the weights, which is evaluated too. null: no EMA."""
    precise_bn_steps: Annotated[int, Field(ge=0)] = 0
    """Recompute the batch norm statistics over training images (at most 1024) before each evaluation up to this step, where
    their moving averages still hold much of their initial values. 0: never."""
    eval_every_epochs: PositiveInt = 1
    """Number of epochs between evaluations; the last epoch is always evaluated."""
    eval_every_steps: PositiveInt | None = None
    """Number of steps between evaluations, in place of eval_every_epochs. null: use eval_every_epochs."""
    log_every_steps: PositiveInt = 10
    """Number of steps between lines of metrics.jsonl."""
    tensorboard: bool = False
    """Deprecated: loggers=[tensorboard]."""
    loggers: LoggerName | tuple[LoggerName, ...] = ()
    """Experiment trackers that the run logs to beside metrics.jsonl: one, or a list. tensorboard: events/ in the run directory.
    wandb, mlflow and trackio are set up by their own environment variables, such as WANDB_MODE=offline, MLFLOW_TRACKING_URI
    and TRACKIO_DIR. Each needs its package: pip install 'stvit[NAME]'."""
    report: bool = True
    """Write report.html into the run directory when the run is complete."""


class CheckpointSection(Section):
    """When checkpoints are written and how many are kept."""

    every_steps: PositiveInt | None = None
    """Number of steps between checkpoints. null: by every_minutes and after evaluations only."""
    every_minutes: Annotated[float, Field(gt=0)] | None = 10.0
    """Minutes between checkpoints; one is also written after an evaluation and at an interruption. null: not by time."""
    keep: PositiveInt = 2
    """Number of checkpoints to keep; older ones are deleted."""


class FinetuneSection(Section):
    """What stays frozen when training starts from weights."""

    freeze_norm: bool = False
    """Freeze batch norm statistics and turn drop path off, as in the authors' fine-tuning."""
    freeze_backbone: bool = False
    """Train the classifier only (linear probing)."""
    unfreeze_epochs: PositiveInt | None = None
    """Gradual unfreezing: the head trains alone at first; each time that this number of epochs is over, one more part of the
    backbone is trained too, from the last stage to the stem. null: all layers train from the start."""
    keep_classes: bool = False
    """Start the classifier from the rows of the classes that the weights have under the same name, such as the 1000 of
    ImageNet-1k in those of ImageNet-21K; the rows of other classes are initialized randomly."""


class EvalSection(Section):
    """How images are evaluated."""

    batch_size: PositiveInt = 64
    """Number of images in a forward pass of one process."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    """Side of the center crop divided by the resized short side. null: 224/256 up to 224 pixels, 1 above (DeiT)."""
    hflip: bool = False
    """Test-time flip of a classifier: average the logits of each image and its horizontal mirror image, at twice the time."""
    translate: Annotated[int, Field(ge=0)] = 0
    """Test-time translation of a classifier: average the logits of each image and of the image moved by this number of pixels in
    the eight directions, its outermost pixels repeated, at nine times the time. 0: off."""
    subset: str | None = None
    """Evaluate a second time among some classes alone, matched by name (WordNet IDs for ImageNet): a list such as imagenet-1k, or
    a text file with a name on each line, relative to data.dir. null: the class folders of subset_dir, or no such evaluation."""
    subset_dir: str | None = None
    """Images of that evaluation: a folder by class, such as ImageNet-1k's val, or shards, whose numbers of classes count along
    subset. null: the validation images of these classes."""

    @property
    def views(self) -> Views:
        """The views of an image over which the logits of a classifier are averaged."""
        return Views(self.hflip, self.translate)


class Recipe(Section):
    """The settings of a run.

    >>> Recipe(schedule=ScheduleSection(epochs=12)).schedule.epochs
    12
    """

    name: str = ""
    """Name of the recipe; the file's name without its extension if not set."""
    description: str = ""
    """One line for `stvit recipes list`."""
    task: Literal["classification", "detection", "segmentation"] = "classification"
    """Task of the model."""
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    augment: AugmentSection = AugmentSection()
    loss: LossSection = LossSection()
    distill: DistillSection = DistillSection()
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
        """The stochastic depth rate of this recipe's model."""
        rates = self.model.drop_path_rate
        return rates.get(self.model.name, 0.0) if isinstance(rates, dict) else rates  # of timm's, `tasks.resolve` chooses one

    @property
    def loggers(self) -> tuple[str, ...]:
        """The experiment trackers, each once; ``train.tensorboard`` is the older name of one."""
        names = self.train.loggers
        return tuple(dict.fromkeys([*((names,) if isinstance(names, str) else names), *["tensorboard"] * self.train.tensorboard]))

    @property
    def peak_lr(self) -> float:
        """The learning rate after warmup, scaled to the global batch size where ``optim.scale_lr_from`` is set."""
        if self.optim.scale_lr_from is None:
            return self.optim.lr
        return self.optim.lr * self.train.global_batch_size / self.optim.scale_lr_from

    @model_validator(mode="after")
    def _refuse_contradictions(self, info: ValidationInfo) -> Self:
        found = list(contradictions(self, saved=bool(info.context and info.context["saved"])))
        if found:
            raise ValueError("\n".join(found))
        return self


PATH_KEYS = ("data.dir", "eval.subset_dir", "detection.results_json")
"""Keys that hold a path; other paths are relative to one of these."""

FREE_ON_RESUME = frozenset(
    {
        "name",
        "description",
        "data.dir",
        "data.num_workers",
        "data.in_memory",
        "data.test_split",
        "train.batch_size_per_device",
        "train.device",
        "train.log_every_steps",
        "train.tensorboard",
        "train.loggers",
        "train.report",
        "checkpoint.every_steps",
        "checkpoint.every_minutes",
        "checkpoint.keep",
        "eval.batch_size",
        "eval.hflip",
        "eval.translate",
        "eval.subset",
        "eval.subset_dir",
        "detection.results_json",
        "detection.exif_orientation",  # without it, no image that needs it can be opened
    }
)
"""Keys that may change when a run is resumed: they decide where and how fast it runs and what is measured, not what it learns."""
