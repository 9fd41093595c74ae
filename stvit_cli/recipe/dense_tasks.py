"""The sections of a recipe for the tasks that say something of every place of an image."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stvit_cli.recipe.field_types import MAX_SIDE, Fraction, NonNegative, PositiveInt, Rate, Section, Side, Width

_Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]


class ShapesSection(Section):
    """The drawn scenes of data.kind shapes: data.image_size is their longer side, data.dir where they go, otherwise a cache."""

    num_train: PositiveInt = 1000
    """Scenes to train on."""
    num_val: PositiveInt = 100
    """Scenes to evaluate."""
    seed: int = 0
    """All scenes follow from it."""


class DetectionSection(Section):
    """Detection and instance segmentation. The defaults are those of Mask R-CNN on COCO, as published with Swin."""

    head: Literal["mask-rcnn", "cascade-mask-rcnn"] = "mask-rcnn"
    """mask-rcnn: one head for boxes and one for masks. cascade-mask-rcnn: three of each, one after the other."""
    train_json: str = "annotations/instances_train2017.json"
    """What is in the training images; below data.dir, as the next three."""
    train_images: str = "train2017"
    """The folder of the training images."""
    val_json: str = "annotations/instances_val2017.json"
    """What is in the images of the evaluation."""
    val_images: str = "val2017"
    """The folder of the images of the evaluation."""
    keep_empty: bool = False
    """Train on images without objects too."""
    invalid_annotations: Literal["stop", "skip"] = "stop"
    """What an annotation does that cannot be used, such as one without a mask: end the reading, or be left out of training and
    evaluation, and counted."""
    exif_orientation: Literal["apply", "ignore"] | None = None
    """Annotations were drawn on the images turned upright by their EXIF orientation (apply), or on the pixels as stored
    (ignore). null: upright where their sizes in the file say so; an image whose size says otherwise, or nothing, is refused."""
    short_sides: Annotated[tuple[Side, ...], Field(min_length=1)] = (800,)
    """Images are resized to a short side of one of these in training, and of the last of them in evaluation; in pixels."""
    long_side: Side = 1333
    """But the long side is never above this, in pixels."""
    freeze_batch_norm: bool = True
    """Batch norms of the backbone keep the statistics of the weights it starts from: two images a GPU give none to rely on."""
    channels: Width = 256
    """Width of the pyramid and of the heads' convolutions."""
    fc_dim: Width = 1024
    """Width of the heads' linear layers."""
    anchor_scale: Annotated[float, Field(ge=0.01, le=1000)] = 8.0
    """Side of an anchor by the stride of its level."""
    num_proposals: PositiveInt = 1000
    """Regions of an image that the proposals give to the heads in training."""
    num_samples: PositiveInt = 512
    """Of these, the heads learn from so many, a quarter of them objects at most."""
    score_threshold: Fraction = 0.05
    """Detections below it are dropped."""
    nms_threshold: Fraction = 0.5
    """Of two detections of a class that overlap by more, the lower one is dropped."""
    max_detections: Annotated[int, Field(gt=0, le=100_000)] = 100
    """Detections of an image that are kept."""
    results_json: str | None = None
    """Every evaluation also writes its detections to this file, in COCO's format with the original ids."""


class SegmentationSection(Section):
    """Semantic segmentation. The defaults are those of UperNet on ADE20K, as published with Swin."""

    class_names: tuple[str, ...] = ()
    """The classes, in the order of their numbers in the label maps."""
    train_images: str = "images/training"
    """The folder of the training images; below data.dir, as the next three."""
    train_maps: str = "annotations/training"
    """Their label maps: a grey or palette PNG for each image."""
    val_images: str = "images/validation"
    """The folder of the images of the evaluation."""
    val_maps: str = "annotations/validation"
    """Their label maps."""
    image_suffix: str | None = None
    """How the names of images end where a label map's name ends otherwise; null: the ending of any image, such as .jpg."""
    map_suffix: str = ".png"
    """What a label map's name has in its place."""
    reduce_zero_label: bool = False
    """Number 0 is no class but to be ignored, and the classes count from 1, as in ADE20K; so are the synthetic shapes."""
    label_values: tuple[Annotated[int, Field(ge=0, le=65535)], ...] | None = None
    """The number of each class in the label maps, such as [0, 255] for masks in black and white; null: 0, 1, 2, ... or from 1."""
    ignore_index: Annotated[int, Field(ge=0, le=65535)] = 255
    """This number in a label map is ignored, in training and in evaluation, unless label_values has it."""
    max_size: tuple[_Side, _Side] = (2048, 512)
    """An image is resized to fit into this long and this short side and touch one of them; in pixels."""
    scale_range: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.5, 2.0)
    """In training these sides are multiplied by a factor drawn from here, before a crop of data.image_size is taken."""
    max_class_share: Annotated[float, Field(gt=0, le=1)] = 0.75
    """A crop of whose labelled pixels one class has a larger share than this is drawn again, up to ten times."""
    photometric: bool = True
    """Distort brightness, contrast, saturation and hue in training."""
    channels: Width = 512
    """Width of UperNet."""
    aux_channels: Width = 256
    """Width of the auxiliary head, which learns from the third stage and is left out at the end."""
    aux_weight: NonNegative = 0.4
    """Weight of its loss."""
    dropout: Rate = 0.1
    """Share of the channels dropped before both classifiers."""
    window: Side | None = None
    """Evaluate by a sliding square window of this side, in pixels; null: the whole image at once."""
    window_stride: PositiveInt | None = None
    """Pixels from one window to the next; null: two thirds of the window."""
    size_divisor: Annotated[int, Field(gt=0, le=1024)] = 1
    """Evaluate with sides of a multiple of so many pixels: the last column and row are repeated, and left out of the answer. A
    model that was trained on crops which its grid divides knows no cells that are cut short."""
    eval_scales: Annotated[tuple[Annotated[float, Field(ge=0.05, le=20)], ...], Field(min_length=1)] = (1.0,)
    """Evaluate at these multiples of max_size and average the probabilities."""
    eval_flip: bool = False
    """Average with the mirrored image too."""
