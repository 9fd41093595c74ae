"""Shell completion: commands, options, recipes, models, runs and keys, at once."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stvit_cli.cli import completion
from stvit_cli.recipe import Recipe
from stvit_cli.recipe.error_messages import dotted_keys

PROGRAM = """
import contextlib, io, json, os, sys, time
from stvit_cli.cli import main
found = []
for words in json.loads(sys.argv[1]):
    os.environ.update(_STVIT_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split(" ")) - 1))
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([])
    found.append(out.getvalue().split())
heavy = {"torch", "torchvision", "timm", "numpy", "matplotlib", "rich.console"} & set(sys.modules)
print(json.dumps([found, sorted(heavy), time.process_time()]))
"""

CASES = {
    "stvit ev": ["eval"],
    "stvit recipes ch": ["check"],
    "stvit mod": ["models"],
    "stvit models stvit-n": ["stvit-nano"],
    "stvit en": ["env"],
    "stvit train --re": ["--recipe", "--resume"],
    "stvit train --recipe coco-mask": ["coco-mask-rcnn-1x", "coco-mask-rcnn-3x-ms"],
    "stvit train --recipe m": ["mine.yaml"],
    "stvit train --recipe quick": ["quickstart"],
    "stvit predict photo.jpg --weights ru": ["runs/quickstart-1"],
    "stvit train --model ": ["stvit-s", "stvit-b", "stvit-l", "stvit-nano"],
    "stvit train --resume ": ["a-run", "runs/quickstart-1"],
    "stvit train --resume runs/": ["runs/quickstart-1"],
    "stvit eval ru": ["runs/quickstart-1"],
    "stvit predict x.png --weights ": ["a-run", "runs/quickstart-1", "my.safetensors", *completion.packaged_weights("")],
    "stvit predict x.png --weights stvit-nano.d": ["stvit-nano.digits"],
    "stvit recipes show quick": ["quickstart"],
    "stvit ablate quick": ["quickstart"],
    "stvit ablate quickstart optim.l": ["optim.lr=", "optim.layer_decay="],
    "stvit ablate --resume studies/": ["studies/lr"],
    "stvit ablate --resume runs/": [],
    "stvit reproduce fashion-m": ["fashion-mnist"],
    "stvit train optim.l": ["optim.lr=", "optim.layer_decay="],
    "stvit train optim.lr": ["optim.lr=", "optim.lr=0.001"],
    "stvit train loss.kind": [f"loss.kind={kind}" for kind in ("", "cross-entropy", "bce", "focal")],
    "stvit train train.comp": ["train.compile=", "train.compile=true", "train.compile=false"],
    "stvit train train.compile = t": ["true"],  # as bash parts the words
    "stvit train train.compile =": ["true", "false"],
    "stvit train data.nothing": [],
}


def test_everything_is_completed_without_a_slow_import(tmp_path: Path) -> None:
    for run in ("a-run", "runs/quickstart-1"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "recipe.yaml").touch()
    (tmp_path / "runs" / "no-run").mkdir()
    (tmp_path / "studies" / "lr").mkdir(parents=True)
    for name in ("recipe.yaml", "plan.json"):
        (tmp_path / "studies" / "lr" / name).touch()
    for name in ("mine.yaml", "my.safetensors"):
        (tmp_path / name).touch()
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(list(CASES))], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    found, heavy, _ = json.loads(ended.stdout)
    assert dict(zip(CASES, found, strict=True)) == CASES
    assert heavy == []


def test_the_keys_are_those_of_the_schema() -> None:
    keys = completion.recipe_keys()
    assert sorted(keys) == sorted(dotted_keys())
    for name, key in keys.items():
        default: object = Recipe.model_fields[name.split(".")[0]].default if "." not in name else None
        if "." in name:
            section, leaf = name.split(".")
            default = getattr(Recipe.model_fields[section].default, leaf)
        if key.default and isinstance(default, (int, float)):
            assert str(default).lower() == key.default, name


def test_the_models_are_known() -> None:
    from stvit_cli.models import list_models

    assert list(completion.MODELS) == [name for name in list_models() if "isotropic" not in name]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell(stvit, monkeypatch: pytest.MonkeyPatch, shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    from typer import completion as typers

    monkeypatch.setattr(typers, "_get_shell_name", lambda: shell)
    with pytest.raises(SystemExit) as ended:
        stvit("--show-completion")
    script = capsys.readouterr().out
    assert not ended.value.code
    assert f"complete_{shell}" in script
    assert "_STVIT_COMPLETE" in script


def test_bash_itself_completes(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    (tmp_path / "stvit").write_text(f'#!/bin/sh\nexec {sys.executable} -m stvit_cli "$@"\n')
    (tmp_path / "stvit").chmod(0o755)
    from typer._completion_shared import get_completion_script

    script = get_completion_script(prog_name="stvit", complete_var="_STVIT_COMPLETE", shell="bash")
    asked = f'{script}\nCOMP_WORDS=(stvit train --recipe quick); COMP_CWORD=3; _stvit_completion stvit; echo "${{COMPREPLY[@]}}"'
    path = f"{tmp_path}:{os.environ['PATH']}"
    ended = subprocess.run([bash, "-c", asked], env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60)
    assert ended.stdout == "quickstart\n"


def test_the_page_describes_completion_as_it_is(stvit) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    options = set(re.findall(r"stvit (--\S+)", page))
    assert {"--install-completion", "--show-completion"} <= options
    assert all(option in stvit("--help").out for option in options)
    typed = set(re.findall(r"`(stvit [^`]*)⇥`", page))
    assert len(typed) == 3
    assert typed <= set(CASES)
