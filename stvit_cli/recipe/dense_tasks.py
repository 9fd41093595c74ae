"""The sections of a recipe that only detection and segmentation have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stvit_cli.recipe.field_types import MAX_SIDE, Fraction, NonNegative, PositiveInt, Rate, Section, Side, Width

_Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]


class ShapesSection(Section):
    """Synthetic shapes (data.kind shapes, of every task), generated in data.dir or, where that is null, in the user's cache."""

    num_train: PositiveInt = 1000
    """Number of training images."""
    num_val: PositiveInt = 100
    """Number of validation images."""
    seed: int = 0
    """Random seed of the images."""


class DetectionSection(Section):
    """Detection and instance segmentation. The defaults are those of Mask R-CNN on COCO, as published with Swin."""

    head: Literal["mask-rcnn", "cascade-mask-rcnn", "faster-rcnn", "cascade-rcnn"] = "mask-rcnn"
    """mask-rcnn: one head for boxes and one for masks. cascade-mask-rcnn: three stages, each with both. faster-rcnn and
    cascade-rcnn: the same without masks, chosen by a new run where no object to train on has a mask."""
    train_json: str = "annotations/instances_train2017.json"
    """COCO annotation file of the training images, relative to data.dir."""
    train_images: str = "train2017"
    """Folder of the training images, relative to data.dir. If it holds none of them, the only folder that holds them all is
    taken."""
    val_json: str | None = "annotations/instances_val2017.json"
    """COCO annotation file of the validation images, relative to data.dir. null: data.val_fraction of the images in train_json
    is held out for validation."""
    val_images: str = "val2017"
    """Folder of the validation images, relative to data.dir; as train_images."""
    keep_empty: bool = False
    """Train on images without objects too."""
    invalid_annotations: Literal["stop", "skip"] = "stop"
    """What to do about an invalid annotation, such as one with a broken polygon. stop: refuse the file. skip: leave it out of
    training and evaluation, and count it. An object without any polygon is valid: it has a box alone."""
    exif_orientation: Literal["apply", "ignore"] | None = None
    """apply: annotations refer to the image rotated by its EXIF orientation. ignore: to the pixels as stored. null: apply
    where the size in the annotation file confirms it; an image for which it does not is refused."""
    short_sides: Annotated[tuple[Side, ...], Field(min_length=1)] = (800,)
    """Short side that images are resized to, in pixels: in training one of these at random, in evaluation the last."""
    long_side: Side = 1333
    """Maximum long side of resized images, in pixels."""
    freeze_batch_norm: bool = True
    """Freeze the batch norm statistics of the backbone: at two images per GPU, batch statistics are unreliable."""
    channels: Width = 256
    """Number of channels of the FPN and of the convolutions in the heads."""
    fc_dim: Width = 1024
    """Number of features of the linear layers in the box heads."""
    anchor_scale: Annotated[float, Field(ge=0.01, le=1000)] = 8.0
    """Side of an anchor divided by the stride of its FPN level."""
    num_proposals: PositiveInt = 1000
    """Number of RPN proposals per image that are kept for training the heads."""
    num_samples: PositiveInt = 512
    """Number of proposals per image that are sampled to train the heads; at most a quarter are positive."""
    score_threshold: Fraction = 0.05
    """Minimum score of a detection."""
    nms_threshold: Fraction = 0.5
    """IoU threshold of non-maximum suppression, per class."""
    max_detections: Annotated[int, Field(gt=0, le=100_000)] = 100
    """Maximum number of detections per image."""
    results_json: str | None = None
    """File that every evaluation writes its detections to, in COCO's results format. null: none."""


class SegmentationSection(Section):
    """Semantic segmentation. The defaults are those of UperNet on ADE20K, as published with Swin."""

    class_names: tuple[str, ...] = ()
    """Class names, in the order of their numbers in the label maps."""
    train_images: str = "images/training"
    """Folder of the training images, relative to data.dir."""
    train_maps: str = "annotations/training"
    """Folder of their label maps, relative to data.dir: a grey or palette PNG per image."""
    val_images: str | None = "images/validation"
    """Folder of the validation images, relative to data.dir. null: data.val_fraction of the training images is held out for
    validation."""
    val_maps: str = "annotations/validation"
    """Folder of their label maps, relative to data.dir; not used where val_images is null."""
    image_suffix: str | None = None
    """End of an image's file name that map_suffix replaces. null: the extension, such as .jpg."""
    map_suffix: str = ".png"
    """End of a label map's file name, in place of the image's."""
    reduce_zero_label: bool = False
    """Ignore the number 0 in label maps and count classes from 1, as in ADE20K and in the synthetic shapes."""
    label_values: tuple[Annotated[int, Field(ge=0, le=65535)], ...] | None = None
    """Number of each class in the label maps, such as [0, 255] for black-and-white masks. null: 0, 1, 2, ..., or from 1 with
    reduce_zero_label."""
    ignore_index: Annotated[int, Field(ge=0, le=65535)] = 255
    """Number in the label maps that training and evaluation ignore, unless it is in label_values."""
    max_size: tuple[_Side, _Side] = (2048, 512)
    """Long and short side, in pixels, that images are resized to fit into, keeping the aspect ratio."""
    scale_range: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.5, 2.0)
    """Range of the random factor on max_size in training, before a crop of data.image_size."""
    max_class_share: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Maximum share of one class in a training crop's labelled pixels; other crops are drawn again, up to ten times."""
    photometric: bool = True
    """Distort brightness, contrast, saturation and hue in training."""
    decoder: Literal["upernet", "fpn", "unet", "segformer", "deeplabv3plus"] = "upernet"
    """Decoder on the stages of the backbone: UPerNet, or another one of segmentation-models-pytorch."""
    channels: Width = 512
    """Number of channels of the decoder. 512: published for UPerNet. 256: segmentation-models-pytorch's own for the others."""
    aux_channels: Width = 256
    """Number of channels of the auxiliary head, which is attached to the third stage and used in training only."""
    aux_weight: NonNegative = 0.4
    """Weight of the auxiliary head's loss."""
    dropout: Rate = 0.1
    """Dropout rate before both classifiers, by channel."""
    window: Side | None = None
    """Side of the square sliding window in evaluation, in pixels. null: the entire image at once."""
    window_stride: PositiveInt | None = None
    """Stride of the sliding window, in pixels. null: two thirds of the window."""
    size_divisor: Annotated[int, Field(gt=0, le=1024)] = 1
    """Pad images in evaluation to sides divisible by this number of pixels, repeating the last row and column; the output is
    cropped. Useful where the training crops are divisible, so that no grid cell was partial."""
    eval_scales: Annotated[tuple[Annotated[float, Field(ge=0.05, le=20)], ...], Field(min_length=1)] = (1.0,)
    """Factors on max_size in evaluation; the probabilities of all scales are averaged."""
    eval_flip: bool = False
    """Average with the prediction for the horizontally flipped image."""
