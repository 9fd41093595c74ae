"""The evaluation of a run's best weights on its test set: once, when the training is over.

Its result is kept in ``evaluation-test.json``, beside the predictions, before its row is added to ``metrics.jsonl``. A run
that is resumed reads it there: its metrics are truncated to the last checkpoint, and the row comes back without an evaluation.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from stvit_cli.engine.evaluation import evaluate_models
from stvit_cli.engine.kept_evaluation import metrics_of, read_content, write_evaluation
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.engine.session import Session
from stvit_cli.engine.state import RunState
from stvit_cli.models.weights.file import read_weights
from stvit_cli.tasks.base import Evaluation
from stvit_cli.utils.metric_names import epoch_text, metric_name, metric_with_unit
from stvit_cli.utils.views import Views


@dataclass(frozen=True)
class FinalTest:
    """What the best weights reach on the test set.

    Attributes:
        split: ``data.test_split``.
        weights: which weights were the best on the validation images: those of the model, or their moving average.
        step: after which they were the best.
        views: over which the logits of an image were averaged (``eval.hflip``, ``eval.translate``).
        metrics: by name.
        seconds: that the evaluation took.
    """

    split: str
    weights: Literal["model", "ema"]
    step: int
    views: Views
    metrics: dict[str, float]
    seconds: float

    def row(self) -> dict[str, Any]:
        """Return the values of its row in ``metrics.jsonl``."""
        facts = {"split": self.split, "weights": self.weights, "weights_step": self.step}
        return {**facts, **self.views._asdict(), **self.metrics, "seconds": self.seconds}

    def line(self, main_metric: str, epoch: float) -> str:
        """Return a line for the user.

        Args:
            main_metric: the metric to name.
            epoch: of the weights.
        """
        num_images = self.metrics["num_images"]
        value = metric_with_unit(main_metric, self.metrics[main_metric], num_images)
        whose = "the moving average" if self.weights == "ema" else "the weights"
        return (
            f"Test {metric_name(main_metric).label} {value} ({int(num_images)} images of {self.split}{self.views.clause}): "
            f"{whose} of epoch {epoch_text(epoch)}, evaluated once."
        )


def read_final_test(run_dir: RunDir, split: str | None) -> FinalTest | None:
    """Return what is kept of the evaluation of ``best.safetensors`` on its test set; None where there is nothing.

    Args:
        run_dir: of the run.
        split: of the recipe; of another split nothing is returned. None: whichever it was.
    """
    content = read_content(run_dir, "test")
    if content is None:
        return None
    try:
        if split not in (None, content["split"]):
            return None
        return FinalTest(
            split=str(content["split"]),
            weights=content["of"],
            step=int(content["step"]),
            views=Views(bool(content["hflip"]), int(content.get("translate", 0))),  # older files lack it
            metrics=metrics_of(content),
            seconds=float(content["seconds"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError):  # edited
        return None


def run_final_test(
    session: Session,
    test: Evaluation,
    state: RunState,
    run_dir: RunDir,
    stopped: Callable[[], bool],
    advance: Callable[[int, int], None],
) -> FinalTest | None:
    """Evaluate the best weights on the test set and keep what was found. Called on every rank.

    Args:
        session: of the run.
        test: the test set and its metrics.
        state: of the run, which is over.
        run_dir: where the best weights are.
        stopped: see `evaluate_models`.
        advance: see `evaluate_models`.

    Returns:
        The result; None where it was abandoned: nothing is written then.

    Raises:
        UserError: the weights or an image cannot be read, outputs are not finite, or a file cannot be written.
    """
    began, world, recipe = time.monotonic(), session.world, session.recipe
    found = evaluate_models(
        test,
        {"": _best_model(session, run_dir)},
        world,
        batch_size=recipe.eval.batch_size,
        num_workers=recipe.data.num_workers,
        stopped=stopped,
        advance=advance,
        images="the test set",
    )
    if found is None:
        return None
    result = FinalTest(
        split=str(recipe.data.test_split),
        weights="ema" if state.best["ema"] else "model",
        step=state.best["step"],
        views=recipe.eval.views,
        metrics=found[""].metrics,
        seconds=round(time.monotonic() - began, 3),
    )
    facts = {"split": result.split, "of": result.weights, **result.views._asdict(), "seconds": result.seconds}
    names = session.task.weights_info().class_names
    world.on_main(lambda: write_evaluation(run_dir, session.task.name, result.step, found[""], names, of="test", facts=facts))
    return result


def _best_model(session: Session, run_dir: RunDir) -> nn.Module:
    """Return a copy of the model with the weights of ``best.safetensors``: the model itself keeps the last ones."""
    model = copy.deepcopy(session.model)

    def load() -> None:
        model.load_state_dict(read_weights(run_dir.best).tensors)

    session.world.on_main(load)
    session.world.broadcast_tensors(model.state_dict().values())
    return model
