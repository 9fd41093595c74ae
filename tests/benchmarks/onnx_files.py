"""Time ONNX files against each other in onnxruntime and OpenVINO, interleaved in one process: medians of images a second.

python tests/benchmarks/onnx_files.py fp32.onnx int8.onnx --size 224 --batch-sizes 1,8 --rounds 7
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[Any], Any]


def in_onnxruntime(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})


def in_openvino(path: Path, threads: int) -> Run:
    import openvino

    hints = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    model = openvino.compile_model(path, "CPU", hints)
    return lambda images: model([images])


def opened(files: list[Path], threads: int) -> Iterator[tuple[str, Run]]:
    for path in files:
        yield f"onnxruntime {path.name}", in_onnxruntime(path, threads)
        try:
            yield f"openvino {path.name}", in_openvino(path, threads)
        except ImportError:
            print("pip install openvino adds its figures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="The first is what the others are compared with.")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--batch-sizes", default="1,8")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    runs = dict(opened(args.files, args.threads))
    for batch_size in map(int, args.batch_sizes.split(",")):
        shape = (batch_size, args.channels, args.size, args.size)
        images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            run(images)
        for _ in range(args.rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run(images)
                seconds[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        first = medians[f"onnxruntime {args.files[0].name}"]
        print(f"batch {batch_size}, {args.size} x {args.size}, {args.threads} threads")
        for name, median in medians.items():
            print(f"  {name:40} {batch_size / median:8.1f} images/s  {first / median:5.2f}")


if __name__ == "__main__":
    main()
