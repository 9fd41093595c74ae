"""Models as ONNX in onnxruntime and OpenVINO, timed in the rounds of PyTorch's; and what the machine is said to be."""

from __future__ import annotations

import ctypes
import gc
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from stvit_cli.analysis.cost import machine, runtimes
from stvit_cli.analysis.cost.throughput import Setting, measure
from stvit_cli.cli.profile import _print_speed
from stvit_cli.utils import processor as cpuinfo
from stvit_cli.utils import runtimes as known_runtimes

BOTH = ("onnxruntime", "openvino")
QUICK = Setting(image_size=(16, 24), batch_size=2, rounds=1, runtimes=BOTH)


def write_file(path: Path, shape: tuple[int | str, ...] = ("batch", 3, "height", "width"), **metadata: str) -> Path:
    """Write a convolution of images and an average over the pixels as ONNX."""
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), dtype=np.float32), "weight")
    nodes = [helper.make_node("Conv", ["images", "weight"], ["y"]), helper.make_node("GlobalAveragePool", ["y"], ["logits"])]
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, (shape[0], 4, 1, 1))
    model = helper.make_model(
        helper.make_graph(nodes, "tiny", [given], [result], [weight]), opset_imports=[helper.make_opsetid("", 18)]
    )
    model.ir_version = 9
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


def test_a_file_is_timed_in_both_runtimes_with_as_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    make_session, compile_model = onnxruntime.InferenceSession, openvino.Core.compile_model

    def session(path: Path, options: Any, **words: Any) -> Any:
        seen.append((options.intra_op_num_threads, options.inter_op_num_threads))
        return make_session(path, options, **words)

    def compiled(core: Any, model: Any, device: str, config: dict[str, Any]) -> Any:
        seen.append((config["INFERENCE_NUM_THREADS"], config["INFERENCE_PRECISION_HINT"], tuple(model.input().shape)))
        return compile_model(core, model, device, config)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(openvino.Core, "compile_model", compiled)
    monkeypatch.setattr(runtimes, "_has_bf16", lambda core: True)
    path = write_file(tmp_path / "tiny.onnx")
    found = measure([], QUICK, [path])[str(path)]["runtimes"]
    assert list(found) == ["onnxruntime", "openvino", "openvino bf16"]
    assert [found[label]["precision"] for label in found] == ["fp32", "fp32", "bf16"]
    threads = torch.get_num_threads()
    assert seen == [(threads, 1), (threads, "f32", (2, 3, 16, 24)), (threads, "bf16", (2, 3, 16, 24))]
    for label, speed in found.items():
        assert speed["images_per_second"] > 0
        assert speed["batch_size"] == 2
        assert speed["peak_memory_bytes"] is speed["share_of_peak"] is None
        assert speed["served_by"].startswith(f"{label.split()[0]} 20" if "openvino" in label else "onnxruntime 1.")


def test_a_processor_without_bf16_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "_has_bf16", lambda core: False)
    said: list[str] = []
    images = np.zeros((1, 3, 8, 8), dtype=np.float32)
    found = list(runtimes.runnables(write_file(tmp_path / "a.onnx"), "openvino", images, 1, said.append))
    assert [runnable.label for runnable in found] == ["openvino"]
    assert said == ["OpenVINO in bf16 is not timed: this processor has no bf16 instructions."]


def test_what_holds_for_all_models_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "_has_bf16", lambda core: False)
    said: list[str] = []
    measure([], QUICK, [write_file(tmp_path / "a.onnx"), write_file(tmp_path / "b.onnx")], said.append)
    assert len(said) == 1


class SignalStack(ctypes.Structure):
    """C's stack_t."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's map of the memory")
def test_signals_have_a_stack_after_several_models_in_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "_has_bf16", lambda core: False)
    paths = [write_file(tmp_path / f"{name}.onnx") for name in "ab"]
    measure([], replace(QUICK, runtimes=("openvino",)), paths, lambda line: None)
    gc.collect()
    stack = SignalStack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    bounds = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
    # Where it is unmapped, the next signal with a handler is a segmentation fault.
    assert stack.address is None or any(int(start, 16) <= stack.address < int(end, 16) for start, end in bounds)


def test_an_int8_file_says_its_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "_has_bf16", lambda core: True)
    path, images = write_file(tmp_path / "int8.onnx", precision="int8"), np.zeros((1, 3, 8, 8), dtype=np.float32)
    for runtime in BOTH:
        assert [found.precision for found in runtimes.runnables(path, runtime, images, 1, print)] == ["int8"]
    half = write_file(tmp_path / "half.onnx", precision="fp16")  # of its weights: it computes in float32
    (found,) = runtimes.runnables(half, "onnxruntime", images, 1, print)
    assert found.precision == "fp32"


def test_free_dimensions_are_as_given_and_fixed_ones_as_in_the_file(tmp_path: Path) -> None:
    assert runtimes.image_shape(write_file(tmp_path / "a.onnx"), 4, (64, 96)) == (4, 3, 64, 96)
    assert runtimes.image_shape(write_file(tmp_path / "b.onnx", ("batch", 3, 32, 32)), 4, (64, 96)) == (4, 3, 32, 32)


def test_models_by_name_are_exported_and_shown_beside_pytorch(stvit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(name: str, path: Path, batch_size: int, image_size: tuple[int, int]) -> str | None:
        if name == "resnet10t":
            return "no such operator"
        write_file(path)
        return None

    monkeypatch.setattr(runtimes, "export", export)
    monkeypatch.setattr("stvit_cli.analysis.cost.throughput.peak_flops", lambda setting: 1e12)
    words = ["--throughput", "--batch-size", "1", "--rounds", "1", "--image-size", "32", "--against", "resnet10t", "--json", "-"]
    ended = stvit("profile", "stvit-nano", *words, "--runtime", "onnxruntime,openvino")
    assert ended.code == 0, ended.err
    nano, other = json.loads(ended.out)
    assert nano["throughput"]["images_per_second"] > 0
    assert set(nano["runtimes"]) >= set(BOTH)
    assert nano["runtimes"]["openvino"]["share_of_peak"] > 0
    assert "runtimes" not in other
    assert "resnet10t is not timed in onnxruntime, openvino: it cannot be exported as ONNX: no such operator" in ended.err
    assert "stvit-nano, onnxruntime" in ended.err
    assert "ratio to resnet10t" in ended.err


@pytest.mark.slow
def test_built_in_models_and_those_of_torchvision_and_timm_are_exported(tmp_path: Path) -> None:
    for name in ("stvit-nano", "resnet18", "timm/resnet10t"):
        path = tmp_path / f"{name.replace('/', '-')}.onnx"
        assert runtimes.export(name, path, 2, (64, 64)) is None
        assert measure([], QUICK, [path])[str(path)]["runtimes"]["openvino"]["images_per_second"] > 0


def test_a_file_alone_runs_in_onnxruntime(stvit, tmp_path: Path) -> None:
    path = write_file(tmp_path / "tiny.onnx")
    ended = stvit("profile", path, "--throughput", "--rounds", "1", "--json", "-")
    assert ended.code == 0, ended.err
    (row,) = json.loads(ended.out)
    assert (row["model"], list(row["runtimes"])) == (str(path), ["onnxruntime"])
    assert "parameters" not in ended.err  # nothing is known of it


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stvit-nano", "--throughput", "--runtime", "openvin"], "runtime: found 'openvin'.*Did you mean 'openvino'"),
        (["stvit-nano", "--throughput", "--train", "--runtime", "openvino"], "are for inference; leave --train out"),
        (["stvit-nano", "--runtime", "openvino"], "--runtime openvino is about the timed step; add --throughput"),
        (["fixed.onnx"], "fixed.onnx is an ONNX file, which can be timed: add --throughput"),
        (["missing.onnx", "--throughput"], "missing.onnx: there is no such file"),
        (["damaged.onnx", "--throughput"], "damaged.onnx: it cannot be read as ONNX"),
        (["fixed.onnx", "--throughput"], "fixed.onnx: it takes batches of 5 alone; give --batch-size 5"),
        (["flat.onnx", "--throughput"], "flat.onnx: expected one input of images"),
        (
            ["grey.onnx", "--throughput", "--runtime", "openvino,onnxruntime"],
            "grey.onnx: openvino cannot run it on images of 8x1x",
        ),
    ],
)
def test_what_cannot_be_timed_is_said(
    stvit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_file(Path("fixed.onnx"), (5, 3, 8, 8))
    write_file(Path("flat.onnx"), ("batch", 3))
    write_file(Path("grey.onnx"), ("batch", 1, 8, 8))  # its weights are for three channels
    Path("damaged.onnx").write_bytes(b"no ONNX")
    ended = stvit("profile", *words)
    assert ended.code == 2
    assert len(ended.err.splitlines()) <= 6
    assert re.search(said, " ".join(ended.err.split())), ended.err


@pytest.mark.parametrize(
    ("missing", "runtime", "extra"), [("openvino", "openvino", "openvino"), ("onnxscript", "onnxruntime", "onnx")]
)
def test_a_runtime_that_is_not_installed_names_the_extra(
    stvit, monkeypatch: pytest.MonkeyPatch, missing: str, runtime: str, extra: str
) -> None:
    monkeypatch.setattr(known_runtimes, "is_installed", lambda name: name != missing)
    ended = stvit("profile", "stvit-nano", "--throughput", "--runtime", runtime)
    assert ended.code == 2
    assert f"runtime {runtime} needs {missing}, not installed here: pip install 'stvit[{extra}]'" in ended.err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "processor\t: 0\nmodel name\t: EPYC 9\nflags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_int8\n",
            ("EPYC 9", ["AVX2", "AVX-512", "AVX512-VNNI", "AVX512-BF16", "AMX-INT8"]),
        ),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16\n", ("CPU", ["NEON", "DotProd", "I8MM", "BF16"])),
        ("", ("CPU", [torch.backends.cpu.get_cpu_capability()])),
    ],
)
def test_processor_and_instruction_sets(
    text: str, expected: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpuinfo, "CPUINFO", tmp_path / "cpuinfo")
    cpuinfo.CPUINFO.write_text(text)
    assert (machine.processor(), machine.instruction_sets()) == expected


def test_the_machine_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    described = machine.describe_machine("cpu")
    assert json.loads(json.dumps(described)) == described
    assert {"stvit", "torch", "onednn", "onnxruntime", "openvino"} <= set(described["versions"])
    assert described["versions"]["onnxruntime"] == onnxruntime.__version__
    assert described["versions"]["onednn"].count(".") == 2
    assert described["usable_cpus"] <= described["cpus"]
    speed = {"mode": "inference", "batch_size": 1, "compiled": False, "device": machine.machine("cpu"), "machine": described}
    speed |= {
        "images_per_second": 2.0,
        "peak_memory_bytes": 2**20,
        "share_of_peak": 0.5,
        "spread": [1.0, 3.0],
        "ms_per_image": 500.0,
    }
    speed |= {"precision": "bf16", "memory_layout": "channels_last", "served_by": "custom kernels"}
    _print_speed([{"model": "stvit-s", "throughput": speed}])
    out = capsys.readouterr().out
    assert all(
        name in out for name in (*described["instruction_sets"], f"{described['threads']} thread", "custom kernels", "bf16")
    )
