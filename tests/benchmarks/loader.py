"""Measure the cost of one training image by steps, and the whole loader beside timm's and the one of version 0.2.0.

python tests/benchmarks/loader.py [--data FOLDER] [--images 128] [--batch-size 32] [--rounds 5] [--only steps|whole|sizes]

Steps are measured one image at a time in processor time of the thread. Loaders run with one worker on the same files, in turn,
round after round; images per second and core are images by the processor time of both processes, worker and training process. So
other programs on the machine change them little. All do deit300's transforms: bicubic random resized crop, flip,
rand-m9-mstd0.5-inc1, random erasing 0.25. Without --data the images are JPEG files of 500 x 375, cropped from the photograph in
tests/images.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import simplejpeg
import torch
import torchvision
from end_to_end import write_photographs
from PIL import Image
from timm.data import ImageDataset, auto_augment, create_loader
from timm.data.loader import fast_collate
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms.v2 import functional as v2

from stvit_cli.analysis.cost.throughput import machine
from stvit_cli.cli.memory import keep_freed_memory
from stvit_cli.cli.output import print_table
from stvit_cli.data import images as images_module
from stvit_cli.data import transforms as transforms_module
from stvit_cli.data.batch_transforms import TrainBatchTransform
from stvit_cli.data.byte_images import ByteImages
from stvit_cli.data.images import decode_image
from stvit_cli.data.loader import build_train_loader, seeded
from stvit_cli.data.pixels import library, mapped, pixels_of
from stvit_cli.data.sampling import TrainBatches
from stvit_cli.data.transforms import train_transform
from stvit_cli.recipe import AugmentSection, DataSection, EvalSection
from stvit_cli.recipe.schema import IMAGENET_MEAN, IMAGENET_STD
from stvit_cli.tasks.base import move
from stvit_cli.tasks.classification.data import build_classification

SIZE = 224
POLICY, ERASING = "rand-m9-mstd0.5-inc1", 0.25
CPU = torch.device("cpu")
BICUBIC = Image.Resampling.BICUBIC


def by_pillow(content: bytes) -> Image.Image:
    """Decode as version 0.2.0 did."""
    return images_module._decode_as_it_is(content)


def seconds(function: Callable[[int], Any], count: int) -> list[float]:
    """Return the processor time of each call. Each has the random numbers of its index."""
    taken = []
    for index in range(count):
        with seeded(index):
            since = time.thread_time()
            function(index)
            taken.append(time.thread_time() - since)
    return taken


def steps(files: list[Path], batch_size: int, rounds: int) -> None:
    """Print the milliseconds of each step in each form: the mean over the images, the median of the rounds."""
    contents = [path.read_bytes() for path in files]
    transform: Any = train_transform(SIZE, IMAGENET_MEAN, IMAGENET_STD, auto_augment=POLICY, random_erasing=ERASING)
    crop, flip, augment, to_tensor, normalize, erase = transform.transforms
    batches = TrainBatchTransform(transform)
    functions = library()
    assert functions is not None
    decoded = [by_pillow(content) for content in contents]
    decoded_here = [decode_image(content, "") for content in contents]
    cropped = [crop(image) for image in decoded]
    augmented = [augment(image) for image in cropped]
    floats = [normalize(to_tensor(image)) for image in augmented]
    as_bytes = [np.array(image) for image in augmented]
    tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in decoded]
    encoded = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
    slot = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    batch_of_bytes = torch.from_numpy(np.stack(as_bytes[:batch_size]))
    count = len(batch_of_bytes)

    def resize_here(index: int) -> None:
        image = decoded_here[index]
        top, left, height, width = crop.get_params(image, crop.scale, crop.ratio)
        functions.resize(pixels_of(image), (left, top, width, height), slot, BICUBIC)

    def resize_by_torch(index: int) -> None:
        top, left, height, width = crop.get_params(decoded[index], crop.scale, crop.ratio)
        v2.resized_crop(tensors[index], top, left, height, width, [SIZE, SIZE], v2.InterpolationMode.BICUBIC, antialias=True)

    def write_here(index: int) -> None:
        slot[...] = np.asarray(augmented[index])

    per_batch = {
        "to tensor, normalize: here, of a batch": lambda: ByteImages(batch_of_bytes, IMAGENET_MEAN, IMAGENET_STD).on(CPU),
        "collate: floats, as in 0.2.0": lambda: move(default_collate(floats[:count]), CPU),
        "collate: bytes, timm's fast_collate": lambda: fast_collate(
            [(array.transpose(2, 0, 1), 0) for array in as_bytes[:count]]
        ),
    }
    forms: dict[str, Callable[[int], Any]] = {
        "read: file": lambda index: files[index].read_bytes(),
        "decode: Pillow, as in 0.2.0": lambda index: by_pillow(contents[index]),
        "decode: torchvision.io": lambda index: torchvision.io.decode_jpeg(encoded[index]),
        "decode: simplejpeg": lambda index: simplejpeg.decode_jpeg(contents[index]),
        "decode: here (simplejpeg, checks, Pillow's image)": lambda index: decode_image(contents[index], ""),
        "crop, resize: Pillow, as in 0.2.0": lambda index: crop(decoded[index]),
        "crop, resize: torchvision v2 (other pixels)": resize_by_torch,
        "crop, resize, flip: here": resize_here,
        "flip: Pillow, as in 0.2.0": lambda index: flip(cropped[index]),
        "RandAugment: timm and Pillow, as in 0.2.0": lambda index: augment(cropped[index]),
        "RandAugment: here": lambda index: batches.augment[0](mapped(cropped[index])),
        "to tensor, normalize: timm, as in 0.2.0": lambda index: normalize(to_tensor(augmented[index])),
        "to bytes, into the batch: here": write_here,
        "erase: timm, as in 0.2.0": lambda index: erase(floats[index]),
    }
    taken: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, form in forms.items():
            taken.setdefault(name, []).append(statistics.mean(seconds(form, len(files))))
        for name, whole in per_batch.items():
            taken.setdefault(name, []).append(statistics.mean(seconds(lambda _, run=whole: run(), 3)) / count)
        for name, batch in (("floats, as in 0.2.0", torch.stack(floats[:count])), ("bytes", batch_of_bytes)):
            taken.setdefault(f"copy between processes: {name}", []).append(between_processes(batch) / count)
    rows = [[name, f"{1000 * statistics.median(values):.3f}"] for name, values in taken.items()]
    print_table(["step", "ms of processor time"], rows, f"one image of 500 x 375 to {SIZE}, {machine('cpu')}")
    print_differences(decoded, tensors)


class Repeated(Dataset[torch.Tensor]):
    """Copies of a batch into shared memory, as `default_collate` makes them in a worker."""

    def __init__(self, batch: torch.Tensor, count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.batch.clone()


def between_processes(batch: torch.Tensor, count: int = 12) -> float:
    """Return the processor time, of both processes, in which a worker hands over one batch."""
    since = processor_time()
    for received in DataLoader(Repeated(batch, count), batch_size=None, num_workers=1):
        received.view(-1)[::1024].sum()  # its memory is touched
    with_batches = processor_time() - since
    since = processor_time()
    for _ in DataLoader(Repeated(batch[:0], count), batch_size=None, num_workers=1):
        pass
    return (with_batches - (processor_time() - since)) / count


def print_differences(decoded: list[Image.Image], tensors: list[torch.Tensor]) -> None:
    """Print how far torchvision's uint8 resize is from Pillow's, in levels of 255."""
    largest, mean = 0.0, []
    for image, tensor in zip(decoded, tensors, strict=True):
        found = v2.resize(tensor, [SIZE, SIZE], v2.InterpolationMode.BICUBIC, antialias=True).permute(1, 2, 0).numpy()
        apart = np.abs(found.astype(int) - np.asarray(image.resize((SIZE, SIZE), BICUBIC)))
        largest, mean = max(largest, apart.max()), [*mean, apart.mean()]
    print(f"torchvision's uint8 resize is at most {largest:.0f} and on average {statistics.mean(mean):.4f} levels from Pillow's.")


def sizes(rounds: int) -> None:
    """Print what decoding at half and a quarter of the size saves, and how far the pixels are then, beside JPEG's own noise."""
    with Image.open(Path(__file__).parents[1] / "images" / "coffee.jpg") as opened:
        photograph = opened.convert("RGB").resize((2048, 1536), BICUBIC)
    path = Path(tempfile.mkdtemp()) / "large.jpg"
    photograph.save(path, quality=92)
    content = path.read_bytes()
    full = np.asarray(by_pillow(content).resize((SIZE, SIZE), BICUBIC)).astype(int)
    exact = np.asarray(photograph.resize((SIZE, SIZE), BICUBIC)).astype(int)
    rows = []
    for factor in (1, 2, 4):
        side = {"min_height": 1536 // factor, "min_width": 2048 // factor, "min_factor": factor} if factor > 1 else {}
        pixels = simplejpeg.decode_jpeg(content, **side)
        apart = np.abs(np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), BICUBIC)).astype(int) - full)
        taken = statistics.median(seconds(lambda _, side=side: simplejpeg.decode_jpeg(content, **side), 3 * rounds))
        rows.append(
            [f"1/{factor}: {pixels.shape[1]} x {pixels.shape[0]}", f"{1000 * taken:.1f}", f"{apart.mean():.3f}", str(apart.max())]
        )
    noise = np.abs(full - exact)
    rows.append(["JPEG's own noise at quality 92", "", f"{noise.mean():.3f}", str(noise.max())])
    print_table(["decoded at", "ms", "mean |difference| at 224", "largest"], rows, "DCT-scaled decoding, 2048 x 1536")


class Items(Dataset[Any]):
    """A training set that gives items alone, as in version 0.2.0."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Any) -> Any:
        return self.dataset[key]


def processor_time() -> float:
    """Return the processor time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def whole(folder: Path, number: int, batch_size: int, rounds: int) -> None:
    """Print the images per second and core of the loaders."""
    augment = AugmentSection(auto_augment=POLICY, random_erasing=ERASING)
    train_set = build_classification(DataSection(dir=str(folder)), augment, EvalSection(), seed=0).train_set

    def run_ours(as_before: bool) -> None:
        sizes = {"global_batch_size": batch_size, "micro_batch_size": batch_size, "rank": 0, "world_size": 1}
        batches = TrainBatches(len(train_set), seed=0, repeats=1, start_step=0, num_steps=number // batch_size, **sizes)
        dataset: Any = Items(train_set) if as_before else train_set
        with patch.object(images_module, "decode_jpeg", (lambda _: None) if as_before else images_module.decode_jpeg):
            for batch in build_train_loader(dataset, batches, default_collate, 1, pin_memory=False):
                move(batch, CPU)

    for name, operation in auto_augment.NAME_TO_OP.items():
        if operation is auto_augment.posterize:  # timm's fails with Pillow 13 where it keeps no bit
            auto_augment.NAME_TO_OP[name] = transforms_module._posterize

    def run_timm() -> None:
        loader = create_loader(
            ImageDataset(str(folder / "train")),
            (3, SIZE, SIZE),
            batch_size,
            is_training=True,
            re_prob=ERASING,
            re_mode="pixel",
            color_jitter=0.0,
            auto_augment=POLICY,
            interpolation="bicubic",
            num_workers=1,
            device=CPU,
            persistent_workers=False,
        )
        for index, (images, _) in enumerate(loader, start=1):
            images.to(memory_format=torch.channels_last)
            if index * batch_size >= number:
                break

    loaders: dict[str, Callable[[], None]] = {
        "timm's create_loader": run_timm,
        "stvit 0.2.0": lambda: run_ours(True),
        "stvit": lambda: run_ours(False),
    }
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    elapsed: dict[str, list[float]] = {name: [] for name in loaders}
    for turn in range(rounds + 1):
        for name, run in loaders.items():
            since, began = processor_time(), time.perf_counter()
            run()
            if turn:  # the first one warms up
                rates[name].append(number / (processor_time() - since))
                elapsed[name].append(number / (time.perf_counter() - began))
    rows = []
    for name, values in rates.items():
        numbers = (statistics.median(values), min(values), max(values), statistics.median(elapsed[name]))
        rows.append([name, *(f"{number:.0f}" for number in numbers)])
    for other in list(loaders)[:2]:
        ratios = [one / two for one, two in zip(rates["stvit"], rates[other], strict=True)]
        rows.append(
            [f"stvit / {other}", *(f"{value:.2f}" for value in (statistics.median(ratios), min(ratios), max(ratios))), ""]
        )
    title = f"one worker, batch {batch_size}, {number} images a turn, {rounds} rounds, {machine('cpu')}"
    print_table(["images per second and core", "median", "min", "max", "per second by the clock"], rows, title)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with train/ and val/, JPEG files")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("steps", "whole", "sizes"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    random.seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.data or write_photographs(Path(temporary) / "photographs", options.images)
        files = sorted(path for path in (folder / "train").rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        if options.only in (None, "steps"):
            steps(files[: options.batch_size], options.batch_size, options.rounds)
        if options.only in (None, "whole"):
            whole(folder, min(options.images, len(files)), options.batch_size, options.rounds)
        if options.only in (None, "sizes"):
            sizes(options.rounds)


if __name__ == "__main__":
    main()
