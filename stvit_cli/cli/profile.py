"""``stvit profile``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stvit_cli.cli import app
from stvit_cli.cli.options import Json
from stvit_cli.cli.output import print_table, reporting
from stvit_cli.errors import UserError


@app.command()
def profile(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="Names; all of Table I where none is given.")
    ] = None,
    image_size: Annotated[
        str, typer.Option(metavar="N or HxW", help="The picture's side, or height and width, in pixels.")
    ] = "224",
    by_module: Annotated[bool, typer.Option("--by-module", help="Also the tree of modules, with the share of each.")] = False,
    depth: Annotated[int, typer.Option(min=1, help="How deep the tree goes.")] = 3,
    json_file: Json = None,
) -> None:
    """Parameters and multiply-adds of the models, beside the paper's figures.

    \b
    stvit profile stvit-s stvit-b stvit-l
    stvit profile stvit-s --image-size 384 --json -
    stvit profile stvit-nano --image-size 64 --by-module
    """
    size = _parse_size(image_size)
    with reporting(json_file) as report:
        from stvit_cli.analysis.profile import profile_models
        from stvit_cli.models.stvit import VARIANTS

        rows = profile_models(models or list(VARIANTS), size)
        print_table(
            COLUMNS, [_cells(row) for row in rows], title=f"One picture of {size[0]} x {size[1]}; FLOPs are multiply-adds"
        )
        for row in rows:
            if row["uncounted"]:
                print(f"{row['model']}: not counted: {', '.join(f'{op} ({n} calls)' for op, n in row['uncounted'].items())}")
            if by_module:
                _print_tree(row, depth)
        report(rows)


COLUMNS = ["model", "parameters", "paper", "difference", "FLOPs", "paper", "difference", "by operator"]


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


def _print_tree(row: dict[str, Any], depth: int) -> None:
    from rich import print as rich_print
    from rich.tree import Tree

    def label(path: str) -> str:
        flops = row["flops_by_module"].get(path, 0)
        return f"{path.rpartition('.')[2] or row['model']}  {row['params_by_module'][path] / 1e6:.3f} M  {flops / 1e9:.3f} G"

    trees = {"": Tree(label(""))}
    for path in row["params_by_module"]:
        parent = path.rpartition(".")[0]
        if path and parent in trees and path.count(".") < depth and row["params_by_module"][path]:
            trees[path] = trees[parent].add(label(path))
    rich_print(trees[""])
