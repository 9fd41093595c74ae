"""The command line: ``app``, and ``main``, which turns what happened into an exit code.

One file a subcommand: every module of this package is imported, and adds its command with ``@app.command()``. None imports torch
at module level, so that every ``--help`` answers at once.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated

import typer

from stvit_cli import __version__
from stvit_cli.cli.help import App
from stvit_cli.cli.memory import keep_freed_memory, last_memory
from stvit_cli.cli.streams import GuardedOutput, guarded_output, log_to_stderr
from stvit_cli.errors import Interrupted, UserError
from stvit_cli.utils.cpus import limit_threads
from stvit_cli.utils.files import reason_of
from stvit_cli.utils.machine_failures import describe, machine_failure
from stvit_cli.utils.streams import lasting_output, open_standard_files
from stvit_cli.utils.text import did_you_mean, printable

_FIRST = ("train", "finetune", "eval", "predict", "profile", "recipes")  # in the help; the others follow by name

_TRAINING = "a lower train.batch_size_per_device, model.checkpointing=true and data.num_workers=0"
_LESS_MEMORY = {
    "train": _TRAINING,
    "finetune": _TRAINING,
    "eval": "eval.batch_size=1 and data.num_workers=0",
    "predict": "smaller images, or fewer at a time",
    "profile": "a lower --batch-size or --image-size",
    "visualize-associations": "a smaller --image-size",
}
"""What makes a command need less memory; said where it runs out."""

_ARGUMENT = re.compile(r"(?<![\w.=/-])(data|from_step|output|weights)=(?=(?:DIR|FILE|N)\b)")
"""An argument as messages of the lower rooms name it: ``output=DIR``."""

app = App("stvit", add_completion=True)


@app.callback(invoke_without_command=True)
def stvit(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    """Super Token Vision Transformer (STViT, CVPR 2023): train, fine-tune, evaluate, use.

    \b
    stvit train --recipe quickstart          a first run, on digits, in minutes
    stvit recipes list                       what else can be trained
    stvit profile stvit-s stvit-b stvit-l    size and cost of the models
    """
    if version:
        typer.echo(f"stvit {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 done; 2 the user's input is wrong (printed in a few lines); 130 after Ctrl-C and 143 after another signal. An internal error
    is raised, so that Python prints where it happened and ends with 1.
    """
    open_standard_files()
    keep_freed_memory()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # odd but harmless files; what matters has messages of its own
    words = [_expand_home(str(word)) for word in (sys.argv[1:] if argv is None else argv)]
    with lasting_output("stderr"), guarded_output() as output, log_to_stderr():  # a message that nobody reads decides nothing
        code = _run(words, output)
        if output.failure is None:
            return code
        complaint = f"standard output cannot be written: {reason_of(output.failure)}."
        if words and words[0] in ("train", "finetune") and "--dry-run" not in words:
            complaint += "\nThe run itself is complete, and saved as usual: `stvit eval RUN_DIR --json FILE` has its metrics."
        return _complain(complaint, words) if code == 0 else code


def _run(words: Sequence[str], output: GuardedOutput) -> int:
    try:
        limit_threads()
        code = app(args=words, prog_name="stvit", standalone_mode=False)
        output.flush()
        return code if isinstance(code, int) else 0
    except UserError as error:
        return _complain(str(error), words)
    except typer.TyperException as error:
        return _complain(_usage(error), words)
    except Interrupted as error:
        return 130 if error.signal_number == signal.SIGINT else 143
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe has gone, as in `stvit recipes show deit300 | head`
        output.give_up()
        return 141
    except Exception as error:
        with last_memory():
            failure = machine_failure(error)
            if failure is None:
                raise
            return _complain(describe(failure, _LESS_MEMORY.get(words[0] if words else "", "")), words)
        return 2
    finally:
        sys.excepthook = _print_internal_error  # typer sets one of its own when it runs


def _expand_home(word: str) -> str:
    """Expand ``~`` at the start of a word or of ``--option=``'s value: the shell leaves it in quotes and after ``=``.

    Otherwise a folder of the name ``~`` would be made. Keys such as ``data.dir=~/x`` are expanded where a recipe is used.
    """
    option, equals, value = word.partition("=")
    # Not Path.expanduser, which raises where there is no such user and drops a slash at the end.
    if word.startswith("--") and equals and value.startswith("~"):
        return f"{option}={os.path.expanduser(value)}"  # noqa: PTH111
    return os.path.expanduser(word) if word.startswith("~") else word  # noqa: PTH111


def _complain(message: str, words: Sequence[str]) -> int:
    """Print what is wrong. Control characters, such as those of a file's name, are shown and not obeyed.

    The lines of a message are its own, but for those in a word of the command line. Arguments that a message names as in Python
    become options.
    """
    message = _ARGUMENT.sub(lambda match: f"--{match[1].replace('_', '-')} ", message).replace(
        "skip_invalid=True", "--skip-invalid"
    )
    for word in words:
        message = message.replace(word, printable(word)) if "\n" in word else message
    shown = printable(message, keep="\n")
    print(f"stvit: {shown}", file=sys.stderr)
    return 2


def _print_internal_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback as Python does, with the control characters in it escaped: it may quote a file's name."""
    with lasting_output("stderr"):
        print(printable("".join(traceback.format_exception(kind, error, trace)), keep="\n"), end="", file=sys.stderr)


def _usage(error: typer.TyperException) -> str:
    """Say what is wrong with the words of the command line, what was probably meant, and where the help is."""
    message, path = error.format_message(), "stvit"
    context = getattr(error, "ctx", None)
    if context is not None:
        path = context.command_path
        options = [option for parameter in context.command.params for option in parameter.opts if option.startswith("--")]
        message += did_you_mean(getattr(error, "option_name", "") or "", options) if "Possible" not in message else ""
    return f"{message}\nSee: {path} --help"


def _place(name: str) -> tuple[int, str]:
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)


for _name in sorted((module.name for module in pkgutil.iter_modules(__path__)), key=_place):
    importlib.import_module(f"{__name__}.{_name}")
