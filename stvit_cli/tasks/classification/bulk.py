"""Classes or features of many images. B batch, C channels, S side of the input in pixels, K classes, D features."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from stvit_cli.data.byte_images import ByteImages, new_block
from stvit_cli.data.images import ImageSource
from stvit_cli.data.prefetch import decoded_ahead
from stvit_cli.data.transforms import eval_transform
from stvit_cli.errors import UserError
from stvit_cli.models.optimize.inference import Precision
from stvit_cli.tasks.base import NonFiniteOutputsError
from stvit_cli.tasks.bulk import BatchResult, Kind, NameOf, finite_rows
from stvit_cli.tasks.classification.predict import class_names
from stvit_cli.tasks.spec import PredictOptions, Trained


class _Batches:
    """What classes and features have in common: the images, resized by loader processes, normalized on the device."""

    batch_size = 64

    def __init__(self, trained: Trained, options: PredictOptions, device: torch.device) -> None:
        info = trained.info
        self.transform = eval_transform(info.image_size, info.mean, info.std, info.crop_pct, info.interpolation, info.in_chans)
        self.device, self._trained, self._precision = device, trained, options.precision

    @cached_property
    def model(self) -> nn.Module:
        """The model as it runs: prepared for the first batch, while the next are decoded."""
        return self._trained.prepared(self.device, None, self._precision)

    def sample(self, image: Image.Image) -> Tensor:
        """Return the resized and cropped image as uint8, (S, S, C): a quarter of the bytes of the normalized one."""
        pixels = self.transform.pixels(self.transform.in_mode(image))
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1))

    def collate(self, samples: list[Tensor]) -> ByteImages:
        block = new_block((len(samples), *samples[0].shape))
        return ByteImages(torch.stack(samples, out=block), *self.transform.statistics)

    @torch.inference_mode()
    def start(self, batch: ByteImages) -> Tensor:
        outputs: Tensor = self.model(batch.on(self.device)).float()
        return outputs


class ClassPredictor(_Batches):
    """The likeliest classes of an image; of several labels for each image, those with at least a threshold.

    Args:
        trained: a classifier.
        options: the number of classes or the threshold, and the precision.
        device: where it runs.
    """

    columns: Mapping[str, Kind] = {"class": "text", "class_index": "int", "score": "score"}

    def __init__(self, trained: Trained, options: PredictOptions, device: torch.device) -> None:
        super().__init__(trained, options, device)
        self._names: NDArray[Any] = np.array([*class_names(trained), None], dtype=object)[:-1]
        self._threshold = options.score_threshold if trained.info.multi_label else None
        self._top = min(options.top, trained.info.num_classes)

    @torch.inference_mode()
    def finish(self, outputs: Tensor, name: NameOf) -> BatchResult:
        if self._threshold is None:
            scores, indices = outputs.softmax(-1).topk(self._top)  # both (B, top)
            is_kept = torch.ones_like(scores, dtype=torch.bool)
        else:
            scores, indices = outputs.sigmoid().sort(dim=-1, descending=True, stable=True)  # both (B, K)
            is_kept = scores >= self._threshold
        finite = finite_rows(outputs)
        kept = is_kept.cpu().numpy() & finite[:, None]
        chosen = indices.cpu().numpy()[kept]
        columns = {"class": self._names[chosen], "class_index": chosen, "score": scores.cpu().numpy()[kept]}
        return BatchResult(kept.sum(1), columns, _errors(finite, name))


class FeaturePredictor(_Batches):
    """The features (D,) from which a classifier computes its logits: those of all positions, projected and averaged.

    Args:
        trained: a model that ends in features; see `without_classifier`.
        options: the precision.
        device: where it runs.
        half: they are written in half precision, whose range is up to 65504; features beyond it are an error of the image.
    """

    columns: Mapping[str, Kind] = {"embedding": "score"}

    def __init__(self, trained: Trained, options: PredictOptions, device: torch.device, *, half: bool = False) -> None:
        super().__init__(trained, options, device)
        self._half = half

    def finish(self, outputs: Tensor, name: NameOf) -> BatchResult:
        errors = _errors(finite_rows(outputs), name)
        if self._half:
            outputs = outputs.half()
            fits = finite_rows(outputs)
            errors = [
                error or (None if fits[number] else f"{name(number)}: features exceed the range of fp16; write fp32.")
                for number, error in enumerate(errors)
            ]
        is_kept = np.array([error is None for error in errors])
        values = outputs.cpu().numpy()[is_kept]
        return BatchResult(np.where(is_kept, outputs.shape[1], 0), {"embedding": values.reshape(-1)}, errors)


def embed(trained: Trained, images: Sequence[ImageSource], precision: Precision, device: torch.device) -> NDArray[np.float32]:
    """Return the features (N, D) of some images, in order.

    Args:
        trained: a model that ends in features; see `without_classifier`.
        images: N paths or images.
        precision: what the model computes in.
        device: where it runs.

    Raises:
        UserError: an image cannot be read, or the features of one are not finite.
    """
    predictor = FeaturePredictor(trained, PredictOptions(precision=precision), device)
    samples = (predictor.sample(opened()) for _, opened in decoded_ahead(images))
    features, done = [], 0
    while batch := list(islice(samples, predictor.batch_size)):
        outputs = predictor.start(predictor.collate(batch))
        for number, is_finite in enumerate(finite_rows(outputs)):
            if not is_finite:
                raise UserError(NonFiniteOutputsError.of(images[done + number]))
        features.append(outputs.cpu().numpy())
        done += len(batch)
    return np.concatenate(features) if features else np.zeros((0, 0), np.float32)


def without_classifier(trained: Trained) -> Trained:
    """Return a copy of a trained model that ends in features (B, D). It shares the weights.

    Args:
        trained: a classifier, or a backbone without one.

    Raises:
        UserError: it is no classifier, or the model's classifier cannot be removed.
    """
    info = trained.info
    if info.task != "classification":
        raise UserError(
            f"{trained.path}: a model for {info.task}; embeddings are of classifiers and of backbones. "
            "Give the weights that it was fine-tuned from."
        )
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*trained.model.parameters(), *trained.model.buffers())}
    model: nn.Module = copy.deepcopy(trained.model, shared)
    if info.num_classes:
        model.reset_classifier(0)  # type: ignore[operator]
    return Trained(model.eval(), info, trained.path)


def _errors(finite: NDArray[np.bool_], name: NameOf) -> list[str | None]:
    return [None if is_finite else NonFiniteOutputsError.of(name(number)) for number, is_finite in enumerate(finite)]
