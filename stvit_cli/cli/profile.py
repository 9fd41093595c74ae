"""``stvit profile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stvit_cli.cli import app, completion
from stvit_cli.cli.options import Json
from stvit_cli.cli.output import echo, print_table, reporting
from stvit_cli.errors import UserError
from stvit_cli.utils.cpus import threads_note

if TYPE_CHECKING:
    from stvit_cli.analysis.cost.throughput import Setting

COLUMNS = ["model", "parameters", "paper", "difference", "FLOPs", "paper", "difference", "by operator"]
SPEED_COLUMNS = [
    *("model", "precision", "images/s", "slowest", "fastest", "ratio", "ms/image", "peak memory", "share of peak", "layout"),
    "served by",
]

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL", help="Names; all of Table I where none is given.", autocompletion=completion.models_and_overrides
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(metavar="N|HxW", help="Side, or height x width, in pixels; 224, or as published for a recipe's task."),
]


@app.command()
def profile(
    models: Names = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The models in this recipe, heads and all; then KEY=VALUE are its keys.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    image_size: ImageSize = None,
    by_module: Annotated[bool, typer.Option("--by-module", help="Also the tree of modules, with each one's share.")] = False,
    depth: Annotated[int, typer.Option(metavar="N", min=1, help="How deep the tree goes.")] = 3,
    throughput: Annotated[bool, typer.Option("--throughput", help="Also time the models, in turn.")] = False,
    against: Annotated[str, typer.Option(metavar="NAMES", help="Models of torchvision or timm beside them, by commas.")] = "",
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images in a step: 8 by default, 128 for --roofline.")
    ] = None,
    train: Annotated[bool, typer.Option("--train", help="Time training steps, not inference.")] = False,
    precision: Annotated[
        Literal["fp32", "bf16"] | None,
        typer.Option(metavar="fp32|bf16", help="Of the step: fp32 by default, bf16 for --roofline."),
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile: built-in models block by block.")] = False,
    kernels: Annotated[
        bool | None,
        typer.Option("--kernels/--no-kernels", help="Built-in models with the custom kernels; by default with AVX2 or AVX-512."),
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="How often each model is timed.")] = 7,
    runtime: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Also time the models as ONNX on the CPU in onnxruntime and openvino, by commas. MODEL may be .onnx.",
        ),
    ] = "",
    roofline: Annotated[
        str | None,
        typer.Option(metavar="GPU", help="What bounds a step on h100, h200 or a100, by operator. Counted; no GPU is needed."),
    ] = None,
    json_file: Json = None,
) -> None:
    """Parameters and multiply-adds of the models, beside the paper's figures; and how fast they run.

    \b
    stvit profile stvit-s stvit-b stvit-l
    stvit profile stvit-s --image-size 384 --json -
    stvit profile stvit-s stvit-b --recipe coco-mask-rcnn-1x model.grid_sizes=[8,4,1,1]
    stvit profile stvit-s --throughput --against swin_t,convnext_tiny,resnet50
    stvit profile stvit-s --throughput --against swin_t --train --compile
    stvit profile stvit-s --throughput --runtime onnxruntime,openvino --precision bf16
    stvit profile model.onnx int8.onnx --throughput --runtime onnxruntime
    stvit profile stvit-s --roofline h100 --train --against swin_t
    """
    size = None if image_size is None else _parse_size(image_size)
    words = [word for word in models or () if "=" in word]
    files = [Path(word) for word in models or () if word.endswith(".onnx")]
    names = [word for word in models or () if "=" not in word and not word.endswith(".onnx")]
    compared = [name for name in against.split(",") if name]
    if words and recipe is None:
        raise UserError(f"{words[0]} sets a key of a recipe; of which? Give --recipe NAME")
    if recipe is not None and (throughput or against):
        raise UserError("--throughput and --against are for models without heads; leave --recipe out.")
    with_kernels = {"--kernels": kernels is True, "--no-kernels": kernels is False}
    in_runtime = {f"--runtime {runtime}": bool(runtime)}
    if roofline is not None:
        from stvit_cli.cli.roofline import profile_roofline

        other = {"--recipe": recipe is not None, "--throughput": throughput, "--compile": compiled, "--by-module": by_module}
        other |= with_kernels | in_runtime | {str(path): True for path in files}
        _require_none(other, "--roofline counts a step of models without heads in every form; leave {} out.")
        shown = [*(names or ["stvit-s"]), *compared]
        return profile_roofline(shown, roofline, size or (224, 224), batch_size or 128, precision or "bf16", train, json_file)
    if not throughput:
        timed = {"--train": train, "--compile": compiled} | with_kernels | {"--precision bf16": precision == "bf16"}
        _require_none(timed | in_runtime, "{} is about the timed step; add --throughput to time the models.")
    runtimes = _runtimes(runtime, files, throughput=throughput, train=train)
    with reporting(json_file) as report:
        import torch

        from stvit_cli.models.stvit import VARIANTS

        device = "cuda" if torch.cuda.is_available() and not runtimes else "cpu"
        if kernels:
            _require_kernels(device)
        rows: list[dict[str, Any]] = []
        if recipe is not None:
            rows = _profile_in_recipe(recipe, names, words, size)
        elif names or compared or not files:
            rows = _profile_all([*(names if names or files else VARIANTS), *compared], size)
        if rows:
            _print_counts(rows, depth if by_module else None)
        if throughput:
            from stvit_cli.analysis.cost.throughput import Setting

            shape = rows[0]["image_size"] if rows else size or (224, 224)
            wanted: bool | Literal["auto"] = "auto" if kernels is None else kernels
            step = (batch_size or 8, train, precision or "fp32", compiled, wanted, rounds, device, runtimes)
            rows = _timed(rows, files, Setting((shape[0], shape[1]), 3, *step))
            _print_speed(rows)
        report(rows)


def _require_none(options: dict[str, bool], message: str) -> None:
    """Raise UserError for the first option that is given; ``{}`` in the message is its name."""
    for name, given in options.items():
        if given:
            raise UserError(message.format(name))


def _print_counts(rows: list[dict[str, Any]], depth: int | None) -> None:
    """Print parameters and multiply-adds, what was not counted, and with a depth the tree of modules."""
    height, width = rows[0]["image_size"]
    print_table(COLUMNS, [_cells(row) for row in rows], f"One image of {height} x {width}; FLOPs are multiply-adds")
    for row in rows:
        if row["uncounted"]:
            calls = ", ".join(f"{operator} ({count} calls)" for operator, count in row["uncounted"].items())
            echo(f"{row['model']}: not counted: {calls}", err=True)
        if depth is not None:
            _print_tree(row, depth)


def _timed(rows: list[dict[str, Any]], files: list[Path], setting: Setting) -> list[dict[str, Any]]:
    """Return the rows with the speed of their models, and a row for each ONNX file."""
    from stvit_cli.analysis.cost.throughput import measure

    if rows and setting.runtimes:
        echo("Exporting the models as ONNX, which can take some minutes; files of `stvit export` can be given.", err=True)
    figures = measure([row["model"] for row in rows], setting, files, lambda line: echo(line, err=True))
    for row in rows:
        other = figures[row["model"]].pop("runtimes", None)
        row |= {"throughput": figures[row["model"]]} | ({} if other is None else {"runtimes": other})
    size = list(setting.image_size)
    return rows + [{"model": str(path), "image_size": size, **figures[str(path)]} for path in files]


def _profile_all(names: list[str], size: tuple[int, int] | None) -> list[dict[str, Any]]:
    from stvit_cli.analysis.cost.profile import profile_models

    return profile_models(names, size or (224, 224))


def _profile_in_recipe(recipe: str, names: list[str], words: list[str], size: tuple[int, int] | None) -> list[dict[str, Any]]:
    from stvit_cli.analysis.cost.profile_recipe import profile_recipe
    from stvit_cli.recipe import io as recipe_io

    choices = [[f"model.name={name}"] for name in names] or [[]]
    return [profile_recipe(settings, size) for settings in [recipe_io.load(recipe, [*words, *choice]) for choice in choices]]


def _require_kernels(device: str) -> None:
    from stvit_cli.models.kernels import KernelsUnavailableError, load

    try:
        load(device)
    except KernelsUnavailableError as error:
        raise UserError(f"--kernels: they cannot be had here: {error}. Leave it out.") from error


def _parse_size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if not 1 <= len(sides) <= 2 or not all(side.isdecimal() for side in sides):
        raise UserError(f"--image-size {text}: expected one number such as 384, or height x width such as 800x1280.")
    return int(sides[0]), int(sides[-1])


def _cells(row: dict[str, Any]) -> list[str]:
    """A row of the table: exact counts, and how far they are from the paper's rounded ones."""
    paper, cells = row["paper"], [row["model"]]
    for ours, theirs, text in (
        (row["params"], paper and paper["params"], f"{row['params']:,}".replace(",", " ")),
        (row["flops"], paper and paper["flops"], f"{row['flops'] / 1e9:.3f} G"),
    ):
        unit = (1e9, "G") if text.endswith("G") else (1e6, "M")
        cells += [text, f"{theirs / unit[0]:g} {unit[1]}", f"{ours / theirs - 1:+.1%}"] if theirs else [text, "-", "-"]
    shares = row["flops_by_operator"].items()
    return [*cells, ", ".join(f"{name} {flops / 1e9:.3f}" for name, flops in shares)]


def _runtimes(given: str, files: list[Path], *, throughput: bool, train: bool) -> tuple[str, ...]:
    """Return the runtimes that are asked for; for files alone it is onnxruntime. Raises UserError where that makes no sense."""
    runtimes = tuple(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    if files and not throughput:
        raise UserError(
            f"{files[0]} is an ONNX file, which can be timed: add --throughput. Parameters are counted of models by name."
        )
    if runtimes and train:
        raise UserError(f"--runtime {given}: onnxruntime and OpenVINO are for inference; leave --train out.")
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: there is no such file.")
    runtimes = runtimes or (("onnxruntime",) if files else ())
    if runtimes:
        from stvit_cli.utils.runtimes import require_runtimes

        require_runtimes(runtimes)
    return runtimes


def _print_speed(rows: list[dict[str, Any]]) -> None:
    """The speeds; the ratio is to the last model's, the one compared with."""
    timed = [(row["model"], row["throughput"]) for row in rows if "throughput" in row]
    timed += [(f"{row['model']}, {label}", speed) for row in rows for label, speed in row.get("runtimes", {}).items()]
    in_pytorch = [entry for entry in timed if entry[1]["peak_memory_bytes"] is not None]
    name, last = (in_pytorch or timed)[-1]
    extras = ["compiled"] if last["compiled"] else []
    machine = last["machine"]
    how = ", ".join([last["mode"], f"batch {last['batch_size']}", *extras, last["device"], *machine["instruction_sets"]])
    lines = []
    for shown, speed in timed:
        rate, memory, share = speed["images_per_second"], speed["peak_memory_bytes"], speed["share_of_peak"]
        ends = [f"{end:.1f}" for end in speed["spread"]]
        held = "-" if memory is None else f"{memory / 2**20:.0f} MiB"
        ratio = f"{rate / last['images_per_second']:.2f}"
        cells = [speed["precision"], f"{rate:.1f}", *ends, ratio, f"{speed['ms_per_image']:.1f}", held]
        cells += ["-" if share is None else f"{share:.0%}", speed["memory_layout"] or "-", speed["served_by"]]
        lines.append([shown, *cells])
    print_table(SPEED_COLUMNS, lines, f"Timed in turn: {how}; ratio to {name}")
    note = threads_note()
    if note is not None:
        echo(note, err=True)
    if last["compiled"]:
        seconds = [f"{shown} {speed['compile_seconds']:.0f} s" for shown, speed in in_pytorch]
        echo(f"Compiled within the first step: {', '.join(seconds)}", err=True)


def _print_tree(row: dict[str, Any], depth: int) -> None:
    """Print the modules, each indented below the one that it is in, with its parameters and multiply-adds."""
    for path, params in row["params_by_module"].items():
        level = path.count(".") + 1 if path else 0
        if level <= depth and (params or not path):
            flops = row["flops_by_module"].get(path, 0)
            echo(f"{'  ' * level}{path.rpartition('.')[2] or row['model']}  {params / 1e6:.3f} M  {flops / 1e9:.3f} G")
