"""A stand-in task for the engine: a small network on made points, in milliseconds, and processes to run it in.

Not a test; the tests of the engine import it.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from stvit_cli.data.loader import SampleKey, derive_seed
from stvit_cli.engine.kept_evaluation import read_evaluation
from stvit_cli.engine.metrics_log import MetricsLog
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.engine.signals import exit_code
from stvit_cli.engine.trainer import fit
from stvit_cli.errors import Interrupted, UserError
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.classification.task import ClassificationEvaluator
from stvit_cli.tasks.preparation import PreparedModel

NUM_TRAIN, NUM_VAL, NUM_CLASSES = 41, 37, 7
# Where a process has failed, the others are killed after this time, as torchrun would: one that is still joining waits for long.
AGENT_SECONDS = 20.0
TIMES = {"images_per_second", "data_wait", "seconds", "peak_memory_bytes"}


def recipe(*overrides: str) -> Recipe:
    """Four epochs of five steps of eight points; everything that could differ after a resumption is on."""
    settings = {
        "train.global_batch_size": "8",
        "train.batch_size_per_device": "2",
        "train.ema_decay": "0.9",
        "train.device": "cpu",
        "train.log_every_steps": "3",
        "schedule.epochs": "4",
        "schedule.warmup_epochs": "1",
        "schedule.update": "step",
        "optim.lr": "1e-2",
        "optim.clip_grad_norm": "1.0",
        "data.num_workers": "0",
        "checkpoint.every_steps": "2",
        "eval.batch_size": "16",
        "augment.repeats": "2",
    }
    settings |= dict(override.split("=", 1) for override in overrides)
    return recipe_io.from_text("name: toy", [f"{key}={value}" for key, value in settings.items()])


def _point(*parts: int | str) -> tuple[Tensor, int]:
    generator = torch.Generator().manual_seed(derive_seed(*parts))
    point = torch.randn(6, generator=generator)
    return point, int((point[:3].sum() + 3).clamp(0, NUM_CLASSES - 1))


class TrainPoints(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return NUM_TRAIN

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        point, target = _point("train", key.index)
        noise, _ = _point("noise", *key)
        return {"image": point + 0.1 * noise, "target": target, "index": key.index}


class ValPoints(Dataset[dict[str, Any]]):
    class_names = tuple(f"class {index}" for index in range(NUM_CLASSES))

    @property
    def images(self) -> ValPoints:
        """Itself: what the evaluator asks for the names."""
        return self

    def relative_path(self, index: int) -> str:
        return f"val-{index}"

    def __len__(self) -> int:
        return NUM_VAL

    def __getitem__(self, index: int) -> dict[str, Any]:
        point, target = _point("val", index)
        return {"image": point, "target": target, "index": index}


class HeldOutPoints(ValPoints):
    """A test set; ``on_item`` is called before each of its points is taken."""

    def __init__(self, on_item: Callable[[int], None] = lambda index: None) -> None:
        self.on_item = on_item

    def relative_path(self, index: int) -> str:
        return f"test-{index}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.on_item(index)
        point, target = _point("test", index)
        return {"image": point, "target": target, "index": index}


class ToyEvaluation:
    """The evaluation of a set of points."""

    name = "classification"

    def __init__(self, val_set: ValPoints) -> None:
        self.val_set = val_set

    def collate_eval(self, samples: list[Any]) -> Any:
        return default_collate(samples)

    def evaluator(self) -> ClassificationEvaluator:
        return ClassificationEvaluator(self.val_set)  # type: ignore[arg-type]

    def describe_eval(self, batch: Any) -> list[str]:
        return [self.val_set.relative_path(index) for index in batch["index"].tolist()]

    def check_data(self) -> list[str]:
        return []


class ToyTask(PreparedModel, ToyEvaluation):
    """``on_loss`` is called with the number of the call before every training loss and may change it."""

    name = "classification"
    main_metric = "top1"
    batch_multiple = 1

    def __init__(
        self,
        *,
        norm: bool = False,
        dropout: float = 0.2,
        on_loss: Callable[[int, Tensor], Tensor] | None = None,
        test_set: HeldOutPoints | None = None,
    ) -> None:
        super().__init__(ValPoints())
        self.test = None if test_set is None else ToyEvaluation(test_set)
        torch.manual_seed(5)
        hidden: list[nn.Module] = [nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout)]
        self.model = nn.Sequential(*hidden, *([nn.BatchNorm1d(16)] if norm else []), nn.Linear(16, NUM_CLASSES))
        self.train_set = TrainPoints()
        self.on_loss = on_loss
        self.data = "points"
        self.calls = 0

    def collate(self, samples: list[Any]) -> Any:
        return default_collate(samples)

    def training_loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        loss = F.cross_entropy(model(batch["image"]), batch["target"])
        self.calls += 1
        return {"loss": loss if self.on_loss is None else self.on_loss(self.calls, loss)}

    def heads(self) -> list[nn.Module]:
        return [self.model[-1]]

    def param_groups(self, weight_decay: float, layer_decay: float | None) -> list[dict[str, Any]]:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return [{"params": trained, "weight_decay": weight_decay, "lr_scale": 1.0}]

    def weights_info(self) -> WeightsInfo:
        return WeightsInfo("toy", num_classes=NUM_CLASSES)

    def notes(self) -> list[str]:
        return []

    def data_fingerprint(self) -> str:
        return self.data

    def data_problems(self) -> list[str]:
        return []

    def describe(self, batch: Any) -> list[str]:
        return [f"point-{index}" for index in batch["index"].tolist()]

    def skipped(self, batch: Any) -> list[str]:
        return []


class Ended:
    """How a process ended: its exit code (negative for a signal) and the message of a UserError."""

    def __init__(self, code: int, message: str) -> None:
        self.code, self.message = code, message


def start(work: Callable[[], None], folder: Path, world_size: int = 1) -> Callable[[], list[Ended]]:
    """Run ``work`` in forked processes, joined as torchrun would; return the function that waits for their ends.

    Forked, as importing torch again would take longer than the test.
    """
    folder.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_main, args=(work, folder, rank, world_size, port)) for rank in range(world_size)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: the children use one each
        for process in processes:
            process.start()

    def wait() -> list[Ended]:
        began, failed = time.monotonic(), 0.0
        # Not join: it waits for the loader workers of a killed process too, and those notice after five seconds.
        while any(process.exitcode is None for process in processes):
            assert time.monotonic() - began < 180, "hangs"
            time.sleep(0.01)
            if any(process.exitcode for process in processes):
                failed = failed or time.monotonic()
            if failed and time.monotonic() - failed > AGENT_SECONDS:
                for process in processes:
                    process.kill()
        messages = [folder / f"message-{rank}" for rank in range(world_size)]
        return [
            Ended(process.exitcode or 0, path.read_text() if path.exists() else "")
            for process, path in zip(processes, messages, strict=True)
        ]

    wait.pids = [process.pid for process in processes]  # type: ignore[attr-defined]
    return wait


def _main(work: Callable[[], None], folder: Path, rank: int, world_size: int, port: int) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in settings.items()})
    code = 0
    try:
        work()
    except UserError as error:
        (folder / f"message-{rank}").write_text(str(error))
        code = 2
    except Interrupted as error:
        code = exit_code(error.signal_number)
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def outcome(run_dir: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return every tensor of the newest checkpoint and every row of the metrics without what depends on the clock."""
    newest = sorted((run_dir / "checkpoints").glob("step_????????"))[-1]
    tensors = {f"{path.stem}/{name}": tensor for path in newest.glob("*.safetensors") for name, tensor in load_file(path).items()}
    history = MetricsLog(run_dir / "metrics.jsonl")
    rows = [
        {key: value for key, value in row.items() if key not in TIMES}
        for kind in ("train", "eval", "test")
        for row in history.rows(kind)
    ]
    return tensors, rows


def assert_same_outcome(run_dir: Path, other: Path) -> None:
    """The same bits in weights, optimiser and moving average, and the same logged figures."""
    (tensors, rows), (other_tensors, other_rows) = outcome(run_dir), outcome(other)
    assert rows == other_rows
    assert tensors.keys() == other_tensors.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], other_tensors[name])] == []
    kept, others = (read_evaluation(RunDir(folder)) for folder in (run_dir, other))
    assert kept is not None  # of the weights beside it
    assert others is not None
    if (run_dir / "best.safetensors").read_bytes() == (other / "best.safetensors").read_bytes():
        assert kept.metrics == others.metrics
        assert kept.predictions.read_bytes() == others.predictions.read_bytes()
    log = MetricsLog(run_dir / "metrics.jsonl")
    written = log.csv_path.read_bytes()
    log.write_csv()
    assert written == log.csv_path.read_bytes()


def train(folder: Path, *overrides: str, resume: bool = False, **settings: Any) -> None:
    """Train the stand-in into ``folder/run``."""
    fit(ToyTask(**settings), recipe(*overrides), folder / "run", resume=resume)


def kill_self() -> None:
    os.kill(os.getpid(), 9)


def kill_at_loss(task: Any, number: int) -> None:
    """Have the process kill itself at a call of a task's ``training_loss``, counted from 1; 0: never."""
    losses, calls = task.training_loss, count(1)

    def training_loss(*batch: Any) -> Any:
        if next(calls) == number:
            kill_self()
        return losses(*batch)

    task.training_loss = training_loss
