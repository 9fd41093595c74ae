"""The loop of a training run, in steps, for any task: step, log, evaluate, save."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from stvit_cli.engine import checkpoint
from stvit_cli.engine.branch import Branch, adapted
from stvit_cli.engine.curves import draw_curves
from stvit_cli.engine.damage import check_content
from stvit_cli.engine.distributed import joined_world, was_restarted
from stvit_cli.engine.evaluation import NonFiniteEvaluationError, evaluate_models
from stvit_cli.engine.failures import LESS_MEMORY, explained
from stvit_cli.engine.finite_weights import require_finite_weights, still_good
from stvit_cli.engine.freezing import set_training_mode
from stvit_cli.engine.metrics_log import Board, History
from stvit_cli.engine.progress import Progress, duration
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.engine.run_lock import RunLock
from stvit_cli.engine.session import Session, build_session, training_batches
from stvit_cli.engine.signals import StopRequest, stop_request
from stvit_cli.engine.state import RunState, capture, inexact_changes, restore
from stvit_cli.engine.step import Outcome, TrainStep
from stvit_cli.errors import Interrupted, UserError
from stvit_cli.models.weights.file import save_weights
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.base import Batch, Task
from stvit_cli.utils.files import replace_file, writing
from stvit_cli.utils.machine_failures import machine_failures_explained
from stvit_cli.utils.streams import lasting_output
from stvit_cli.utils.text import metric_text, shell_command

# Drawing the curves takes a third of a second: after an evaluation it is done at most this often, and always at the end.
CURVES_SECONDS = 60.0


def fit(task: Task, recipe: Recipe, run_dir: Path, *, resume: bool = False, branch: Branch | None = None) -> dict[str, float]:
    """Train ``task`` by ``recipe`` into ``run_dir``, alone or with the other processes that torchrun started.

    Args:
        task: model, data, loss and metrics.
        recipe: the run's settings.
        run_dir: the run's directory.
        resume: go on with the run in ``run_dir`` from its newest whole checkpoint. Processes that torchrun has started again
            after one of them ended do so by themselves.
        branch: start the run from this checkpoint of another one, whose recipe may differ in all but the model and its classes.

    Returns:
        The metrics of the best weights, under their own names, with ``best_epoch``, ``epochs``, ``steps``, ``seconds``, and
        those of the last evaluation as ``last_...``.

    Raises:
        UserError: something that the person can mend; what was saved before is intact.
        Interrupted: a signal asked to stop; the state is saved.
    """
    with lasting_output("stdout", "stderr"), joined_world(recipe.train.device) as world, stop_request() as stop:
        with machine_failures_explained(LESS_MEMORY):
            session = build_session(task, recipe, world)
        with explained(session, run_dir):
            places = RunDir(run_dir)
            go_on = world.broadcast(resume or (was_restarted() and places.recipe.is_file()))
            with closing(Trainer(session, places, stop)) as trainer:
                if go_on:
                    trainer.take_up()
                elif branch is not None:
                    trainer.branch_off(branch)
                else:
                    trainer.begin()
                return trainer.run()


class Trainer:
    """A run in its directory. Rank 0 alone writes; the others wait for it, and end with it where it cannot."""

    def __init__(self, session: Session, places: RunDir, stop: StopRequest) -> None:
        self.session, self.places, self.stop = session, places, stop
        self.recipe, self.world, self.timeline = session.recipe, session.world, session.timeline
        self.state = RunState()
        self.history = History(places.metrics)
        self.notes: list[str] = []
        self.lock: RunLock | None = None  # rank 0's
        self.saved_step = -1
        self.saved_at = self.drawn_at = self.window_since = time.monotonic()
        self.waited = 0.0

    def begin(self) -> None:
        """Start a run: the first checkpoint holds the initial weights, so that there is always one to go back to."""
        self.notes += self.world.on_main(self.session.task.check_data)
        self._lock(self.places.clear)
        self._write_environment()
        self._start()

    def _start(self) -> None:
        self.save()
        self.world.on_main(lambda: self.places.write_recipe(self.recipe))

    def _write_environment(self, started_from: dict[str, object] | None = None) -> None:
        device, size, kernels = str(self.world.device), self.world.size, self.session.preparation.kernels
        self.world.on_main(lambda: self.places.write_environment(device, size, kernels, started_from))

    def branch_off(self, branch: Branch) -> None:
        """Start a run from a checkpoint of another one: with the same recipe its continuation, bit by bit."""
        source: checkpoint.Checkpoint | None = None

        def read() -> dict[str, Any]:
            nonlocal source
            source = branch.read()
            return source.state

        def is_kept(row: dict[str, Any]) -> bool:
            return not (row["kind"] == "eval" and row["step"] == branch.step and self.timeline.eval_due(branch.step))

        content = self.world.on_main(read)
        self.state = restore(self.session, source, adapted)
        self.world.on_main(self._require_finite_weights)
        self.notes += self.world.on_main(self.session.task.check_data)
        self._lock(self.places.clear)
        self._write_environment({"run": str(branch.run_dir.resolve()), "step": branch.step})
        self.world.on_main(lambda: branch.copy_metrics(self.places.metrics, content["metrics_bytes"], is_kept))
        self.notes.append(f"Started from {branch.run_dir} after step {self.state.step}.")
        self.notes += inexact_changes(self.session, content)
        self._start()

    def take_up(self) -> None:
        """Go on with a run where its newest whole checkpoint left it."""
        self.world.on_main(self.places.require_run)
        self._lock(lambda: RunLock.acquire(self.places.path))
        self.world.on_main(self.places.remove_leftovers)
        self.world.on_main(lambda: self.places.check_resumable(self.recipe))
        newest: checkpoint.Checkpoint | None = None

        def read() -> dict[str, Any]:
            nonlocal newest
            newest = checkpoint.load_newest(
                self.places.checkpoints, lambda found: check_content(self.session, found.step, found.tensors, found.state)
            )
            return newest.state

        content = self.world.on_main(read)
        self.state = restore(self.session, newest)
        self.saved_step = self.state.step
        self.notes.append(f"Resumed after step {self.state.step}.")
        self.notes += inexact_changes(self.session, content)
        self.world.on_main(self._require_finite_weights)
        self.world.on_main(lambda: self._tidy(newest, content["metrics_bytes"]))

    def _lock(self, acquire: Callable[[], RunLock]) -> None:
        """Lock the run directory on rank 0: all processes that torchrun started are one run."""

        def lock() -> None:
            self.lock = acquire()
            if self.lock.is_shared:
                self.notes.append(f"Warning: the file system of {self.places.path} has no locks; start no other run in it.")

        self.world.on_main(lock)

    def close(self) -> None:
        """Free the run directory for another run."""
        if self.lock is not None:
            self.lock.release()

    def _write(self, work: Callable[[], None]) -> None:
        """Write into the run directory on rank 0, where it still is this run's."""

        def write() -> None:
            assert self.lock is not None
            self.lock.require_held()
            work()

        self.world.on_main(write)

    def _require_finite_weights(self) -> None:
        require_finite_weights(self.session, self.state, self.places)

    def _tidy(self, newest: checkpoint.Checkpoint | None, metrics_bytes: int) -> None:
        """Put damaged checkpoints aside and drop the metrics of steps that will be taken again."""
        assert newest is not None
        for path, reason in newest.passed_over.items():
            self.notes.append(
                f"Warning: {path.name} is damaged ({reason}); {newest.path.name} is used. It is now {path.name}.damaged."
            )
            with writing(path):
                checkpoint.set_aside(path)
        if not self.history.cut(metrics_bytes):
            self.notes.append(f"Warning: {self.places.metrics} has lost lines that were there at the checkpoint.")

    def run(self) -> dict[str, float]:
        """Train to the end, or to a signal."""
        with ExitStack() as stack:
            self.progress = stack.enter_context(Progress(self.timeline, self.state.step, quiet=not self.world.is_main))
            self.board = (
                Board(self.places.events, self.state.step) if self.recipe.train.tensorboard and self.world.is_main else None
            )
            stack.callback(lambda: self.board.close() if self.board else None)
            self._greet()
            self._loop()
            self._write(self._draw)
            result = self._result()
            spent = duration(self.state.seconds)
            main = self.session.task.main_metric
            best = metric_text(main, result[main], result.get("num_images", 100_000))
            self.progress.say(f"Best {main} {best} (epoch {result['best_epoch']:g}) after {spent}: {self.places.best}")
        return result

    def _greet(self) -> None:
        plan, timeline = self.session.plan, self.timeline
        with_kernels = " with custom kernels" if self.session.preparation.kernels_in_training else ""
        trained = sum(p.numel() for p in self.session.model.parameters() if p.requires_grad)
        self.progress.say(
            f"{self.recipe.name}: {trained / 1e6:.2f} M trained parameters on {self.world.device}{with_kernels}, batch {plan}, "
            f"{timeline.num_steps} steps ({timeline.steps_per_epoch} an epoch), into {self.places.path}"
        )
        if self.recipe.train.kernels is True and not with_kernels:
            precision = self.recipe.train.precision
            self.notes.append(
                f"Note: on a CPU the kernels are for float32: with train.precision={precision} only evaluations use them."
            )
        for note in [*self.session.task.notes(), *self.notes]:
            self.progress.say(note)

    def _loop(self) -> None:
        state = self.state
        take_step = TrainStep(self.session)
        if self.timeline.eval_due(state.step) and state.evaluated != state.step:  # a signal had come before it was over
            self._evaluate()
            self.save()
        set_training_mode(self.session.task, self.recipe.finetune)
        self.window_since = time.monotonic()
        with closing(iter(training_batches(self.session, state.step))) as feed:
            self._train(take_step, feed)

    def _train(self, take_step: TrainStep, feed: Iterator[Batch]) -> None:
        state, checkpoints = self.state, self.recipe.checkpoint
        since = time.monotonic()
        while state.step < self.timeline.num_steps:
            outcome = take_step(state.step, feed, lambda: (self.stop.number, self._clock_asks()))
            state.step += 1
            state.seconds += time.monotonic() - since
            since = time.monotonic()
            self._log(outcome)
            if outcome.stop:
                self._stop(outcome.stop)
            due = self.timeline.eval_due(state.step)
            if due:
                self._evaluate()
                set_training_mode(self.session.task, self.recipe.finetune)
            if due or outcome.save or (checkpoints.every_steps and state.step % checkpoints.every_steps == 0):
                self.save()

    def _clock_asks(self) -> bool:
        minutes = self.recipe.checkpoint.every_minutes
        return self.world.is_main and minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes

    def _log(self, outcome: Outcome) -> None:
        state = self.state
        for name, value in outcome.losses.items():
            state.window[name] = state.window.get(name, 0.0) + value
        state.window_steps += 1
        self.waited += outcome.waited
        batch = self.session.plan.global_batch_size
        if outcome.skipped:
            state.skipped += len(outcome.skipped)
            self.progress.warn(
                f"{len(outcome.skipped)} unreadable, other images in their place: {', '.join(outcome.skipped[:3])}"
            )
        self.progress.step(state.step, outcome.losses["loss"], outcome.lr, batch)
        if state.step % self.recipe.train.log_every_steps and state.step != self.timeline.num_steps:
            return
        seconds = time.monotonic() - self.window_since
        row = {name: value / state.window_steps for name, value in state.window.items()} | {
            "lr": outcome.lr,
            "grad_norm": outcome.grad_norm,
            "images_per_second": state.window_steps * batch / seconds,
            "data_wait": self.waited / seconds,
            "skipped": state.skipped,
        }
        state.window, state.window_steps = {}, 0
        self.window_since, self.waited = time.monotonic(), 0.0
        self._write(lambda: self._record("train", row))

    def _record(self, kind: str, figures: dict[str, Any]) -> None:
        row = {"kind": kind, "step": self.state.step, "epoch": self.timeline.epoch(self.state.step)} | figures
        self.history.append(row)
        if self.board is not None:
            self.board.add(row)

    def _evaluate(self) -> None:
        """Evaluate the weights and their moving average, keep the best; on a signal save without it."""
        state, session, began = self.state, self.session, time.monotonic()
        self.progress.pause()
        models = {"": session.model} | ({"ema_": session.ema.module} if session.ema is not None else {})
        for model in models.values():
            self.world.broadcast_tensors(model.buffers())
        self.world.on_main(self._require_finite_weights)
        try:
            results = evaluate_models(
                session.task,
                models,
                self.world,
                batch_size=self.recipe.eval.batch_size,
                num_workers=self.recipe.data.num_workers,
                stopped=lambda: self.stop.number != 0,
                advance=self.progress.evaluating,
            )
        except NonFiniteEvaluationError as error:
            raise UserError(f"After step {state.step}: {error}\n{still_good(state, self.places)}") from error
        if results is None:
            self._stop(max(self.world.gather(self.stop.number)))
            return
        seconds = time.monotonic() - began
        averaged = {f"ema_{name}": value for name, value in results.get("ema_", {}).items() if isinstance(value, float)}
        state.evaluated, state.metrics = state.step, results[""] | averaged
        main = session.task.main_metric
        winner = max(results, key=lambda prefix: results[prefix][main])
        is_best = not state.best or results[winner][main] > state.best["metrics"][main]
        if is_best:
            state.best = {"step": state.step, "ema": winner == "ema_", "metrics": results[winner]}
        self._write(lambda: self._record("eval", state.metrics | {"seconds": seconds}))
        self._write(lambda: self._write_weights(is_best))
        self.progress.evaluated(self.timeline.epoch(state.step), state.metrics, is_best, seconds)
        if time.monotonic() - self.drawn_at >= CURVES_SECONDS:
            self._write(self._draw)
        self.window_since += time.monotonic() - began

    def _write_weights(self, is_best: bool) -> None:
        session, info = self.session, self.session.task.weights_info()
        weights = {self.places.last: session.model}
        if session.ema is not None:
            weights[self.places.last_ema] = session.ema.module
        if is_best:
            weights[self.places.best] = (
                session.ema.module if session.ema is not None and self.state.best["ema"] else session.model
            )
        for path, model in weights.items():
            with writing(path):
                save_weights(path, model, info)

    def _draw(self) -> None:
        self.drawn_at = time.monotonic()
        image = draw_curves(
            self.history.rows("train"), self.history.rows("eval"), self.session.task.main_metric, self.recipe.name
        )
        with writing(self.places.curves):
            replace_file(self.places.curves, image)

    def save(self) -> None:
        """Write a checkpoint of the step that is over; once for each step."""
        if self.saved_step == self.state.step:
            return

        def write() -> None:
            self._require_finite_weights()
            groups, content = capture(self.session, self.state, self.history.size())
            checkpoint.save(self.places.checkpoints, self.state.step, groups, content, self.recipe.checkpoint.keep)

        self._write(write)
        self.saved_step, self.saved_at = self.state.step, time.monotonic()

    def _stop(self, number: int) -> None:
        self.save()
        self._write(self._draw)
        name = signal.Signals(number).name
        resume = shell_command("stvit", "train", "--resume", self.places.path)
        self.progress.say(f"Stopped by {name}; saved after step {self.state.step}. Go on with: {resume}")
        raise Interrupted(number)

    def _result(self) -> dict[str, float]:
        state = self.state
        return {
            **state.best["metrics"],
            "best_epoch": self.timeline.epoch(state.best["step"]),
            "epochs": self.timeline.epoch(state.step),
            "steps": state.step,
            "seconds": round(state.seconds, 1),
            **{f"last_{name}": value for name, value in state.metrics.items() if isinstance(value, float)},
        }
