"""The loop of a training run, in steps, for any task: step, log, evaluate, save."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from stvit_cli.engine.branch import Branch
from stvit_cli.engine.callbacks import Callback, Callbacks, TrainingView, read_only
from stvit_cli.engine.checkpoint import newest_micro_batch_size
from stvit_cli.engine.determinism import fixed_order
from stvit_cli.engine.distributed import joined_world, was_restarted
from stvit_cli.engine.evaluation import NonFiniteEvaluationError, evaluate_models
from stvit_cli.engine.failures import LESS_MEMORY, evaluation_explained, explained
from stvit_cli.engine.final_test import FinalTest, read_final_test, run_final_test
from stvit_cli.engine.finite_weights import require_finite_weights, still_good
from stvit_cli.engine.freezing import set_training_mode
from stvit_cli.engine.loggers.base import LoggedImage, Status
from stvit_cli.engine.mode_gap import measure_gap
from stvit_cli.engine.peak_memory import peak_memory
from stvit_cli.engine.precise_batch_norm import recompute_statistics
from stvit_cli.engine.progress import Progress, duration
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.engine.run_start import RunStart
from stvit_cli.engine.run_summary import summary
from stvit_cli.engine.run_writer import RunWriter
from stvit_cli.engine.session import Session, build_session, training_batches
from stvit_cli.engine.signals import StopRequest, stop_request
from stvit_cli.engine.slow_spots import slow_loader
from stvit_cli.engine.state import RunState
from stvit_cli.engine.step import StepResult, TrainStep
from stvit_cli.errors import Interrupted, UserError
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.base import Batch, HasTestSet, KeepsImages, Task
from stvit_cli.utils.machine_failures import machine_failures_explained
from stvit_cli.utils.metric_names import MANY_IMAGES, epoch_text, metric_name, metric_with_unit
from stvit_cli.utils.streams import lasting_output
from stvit_cli.utils.text import shell_command
from stvit_cli.utils.troubleshooting import see

# Drawing the curves takes a third of a second: after an evaluation it is done at most this often, and always at the end.
SLOW_WINDOWS = 3
"""Number of lines of metrics.jsonl whose steps waited for data after which it is said, once: the first ones start the workers."""
CURVES_SECONDS = 60.0


def fit(
    task: Task,
    recipe: Recipe,
    run_dir: Path,
    *,
    resume: bool = False,
    branch: Branch | None = None,
    first_images: Callable[[], Sequence[LoggedImage]] | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, float]:
    """Train a task and write the run into a directory, in one process or in those that torchrun started.

    Args:
        task: model, data, loss and metrics.
        recipe: the run's settings.
        run_dir: the run's directory.
        resume: resume the run in ``run_dir`` from its newest complete checkpoint. Processes that torchrun restarted after a
            failure do so without being told.
        branch: a checkpoint of another run to start from. The recipe may differ from that run's, except in the model and its
            classes.
        first_images: draws images that loggers get when a run starts.
        callbacks: called at the points of the loop, in every process.

    Returns:
        The metrics of the best weights by name; ``best_epoch``, ``epochs``, ``steps`` and ``seconds``; with
        ``schedule.patience`` also ``stopped_early``; the metrics of the last evaluation as ``last_NAME``, and those of the test
        set as ``test_NAME``. Where a callback stopped the run before its first evaluation, there are no metrics.

    Raises:
        UserError: the data, the recipe, the machine or the directory need the user's attention; saved files are intact.
        Interrupted: a signal stopped the run; its state is saved.
    """
    with (
        lasting_output("stdout", "stderr"),
        joined_world(recipe.train.device) as world,
        stop_request() as stop,
        fixed_order(world.device),
    ):
        paths = RunDir(run_dir)
        is_resumed = world.broadcast(resume or (was_restarted() and paths.recipe.is_file()))
        before = world.on_main(lambda: newest_micro_batch_size(paths.checkpoints)) if is_resumed else None
        with machine_failures_explained(LESS_MEMORY):
            session = build_session(task, recipe, world, before)
        with explained(session, run_dir), closing(Trainer(session, paths, stop, first_images, callbacks)) as trainer:
            return trainer.run(RunStart(session, paths, trainer.writer), branch, resume=is_resumed)


class Trainer:
    """The loop of a run in its directory.

    Args:
        session: the model, the data and the optimizer.
        run_dir: the run's directory.
        stop: tells whether a signal asked to stop.
        first_images: draws images that loggers get when a run starts.
        callbacks: called at the points of the loop.
    """

    def __init__(
        self,
        session: Session,
        run_dir: RunDir,
        stop: StopRequest,
        first_images: Callable[[], Sequence[LoggedImage]] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.session, self.run_dir, self.stop, self.first_images = session, run_dir, stop, first_images
        self.recipe, self.world, self.timeline = session.recipe, session.world, session.timeline
        self.state = RunState()
        self.writer = RunWriter(session, run_dir)
        self.status: Status = "failed"
        self.callbacks = Callbacks(callbacks, self.world, self._view)
        self.last_step: StepResult | None = None
        self.is_stopped = False
        self.tested: FinalTest | None = None
        self.window_since = time.monotonic()
        self.waited = 0.0
        self.slow_windows = 0

    def close(self) -> None:
        """Release the run directory and what the run logs to."""
        self.writer.close(self.status)

    def run(self, start: RunStart, branch: Branch | None, *, resume: bool) -> dict[str, float]:
        """Start, and train to the end.

        Args:
            start: starts the run.
            branch: a checkpoint of another run to start from.
            resume: resume the run in the directory.

        Returns:
            The result of the run; see `fit`.

        Raises:
            Interrupted: a signal stopped the run; its state is saved.
        """
        self.state = start.resume() if resume else start.new() if branch is None else start.branch(branch)
        with Progress(self.timeline, self.state.step, not self.world.is_main, self.session.task.main_metric) as self.progress:
            self.writer.open_loggers(self.state.step, self.progress.say, self.progress.warn)
            for line in summary(self.session, self.run_dir.path, start.notes):
                self.progress.say(line)
            self._keep_images()
            if not self.state.step and self.first_images is not None:
                self.writer.log_images(0, self.first_images)
            is_new = not self._is_over()
            try:
                self._call("on_start")
                self._loop()
                self.writer.draw_curves()
                if self._is_over():
                    self._test()
                self._call("on_end")
            except BaseException as error:
                self.callbacks.report(error)
                raise
            if self.is_stopped and not self._is_over():
                return self._stopped_by_callback()
            if is_new:
                self._note_gap()
            result = self._result()
            spent = duration(self.state.seconds)
            main = self.session.task.main_metric
            best = metric_with_unit(main, result[main], result.get("num_images", MANY_IMAGES))
            if self._is_stopped_early():
                self._say_stopped_early()
            self.status = "finished"
            epoch = epoch_text(result["best_epoch"])
            self.progress.say(f"Best {metric_name(main).label} {best} (epoch {epoch}) after {spent}: {self.run_dir.best}")
            if self.tested is not None:
                self.progress.say(self.tested.line(main, self.timeline.epoch(self.tested.step)))
        return result

    def _keep_images(self) -> None:
        """Let the task decode small images once, each process for itself."""
        task = self.session.task
        if isinstance(task, KeepsImages):
            samples = (self.timeline.num_steps - self.state.step) * self.session.plan.global_batch_size
            line = task.keep_images(samples, lambda: self.stop.number != 0, self.progress.decoding)
            if line is not None:
                self.progress.say(line)

    def _loop(self) -> None:
        state = self.state
        take_step = TrainStep(self.session)
        self.session.unfreeze(max(state.step - 1, 0))  # as it was in the step before an evaluation
        if self.timeline.eval_due(state.step) and state.evaluated != state.step:  # a signal had come before it was over
            self._evaluate()
            self.writer.save_checkpoint(self.state)
        set_training_mode(self.session.task, self.recipe.finetune)
        self.window_since = time.monotonic()
        with closing(iter(training_batches(self.session, state.step))) as feed:
            self._train(take_step, feed)

    def _train(self, take_step: TrainStep, feed: Iterator[Batch]) -> None:
        state, checkpoints = self.state, self.recipe.checkpoint
        since = time.monotonic()
        while not (self._is_over() or self.is_stopped):
            self.session.unfreeze(state.step)
            began = time.monotonic()
            step_result = take_step(state.step, feed, lambda: (self.stop.number, self._checkpoint_due()))
            state.step += 1
            state.seconds += time.monotonic() - since
            since = time.monotonic()
            self._log(step_result, time.monotonic() - began)
            self._call("on_step")
            if step_result.stop_signal:
                self._stop(step_result.stop_signal)
            due = self.timeline.eval_due(state.step)
            if due:
                self._evaluate()
                set_training_mode(self.session.task, self.recipe.finetune)
            at_steps = checkpoints.every_steps and state.step % checkpoints.every_steps == 0
            if due or step_result.checkpoint_due or at_steps or self.is_stopped:
                self.writer.save_checkpoint(self.state)
                self._call("on_checkpoint")

    def _is_over(self) -> bool:
        return self.state.step >= self.timeline.num_steps or self._is_stopped_early()

    def _is_stopped_early(self) -> bool:
        patience = self.recipe.schedule.patience
        return patience is not None and self.state.stale >= patience and self.state.step < self.timeline.num_steps

    def _say_stopped_early(self) -> None:
        stale, main = self.state.stale, self.session.task.main_metric
        self.progress.say(
            f"Stopped early after step {self.state.step} of {self.timeline.num_steps}: {stale} evaluation{'s' * (stale > 1)} "
            f"without a better {main} (schedule.patience={self.recipe.schedule.patience})."
        )

    def _checkpoint_due(self) -> bool:
        minutes = self.recipe.checkpoint.every_minutes
        return self.world.is_main and minutes is not None and time.monotonic() - self.writer.saved_at >= 60 * minutes

    def _log(self, step_result: StepResult, step_seconds: float) -> None:
        state = self.state
        for name, value in step_result.losses.items():
            state.window[name] = state.window.get(name, 0.0) + value
        state.window_steps += 1
        self.last_step = step_result
        self.waited += step_result.waited
        batch = self.session.plan.global_batch_size
        if step_result.skipped:
            state.skipped += len(step_result.skipped)
            self.progress.warn(
                f"{len(step_result.skipped)} unreadable, replaced by other images: {', '.join(step_result.skipped[:3])}"
            )
        self.progress.step(state.step, step_result.losses["loss"], step_result.lr, batch, step_seconds)
        if state.step % self.recipe.train.log_every_steps and state.step != self.timeline.num_steps:
            return
        seconds = time.monotonic() - self.window_since
        row = {name: value / state.window_steps for name, value in state.window.items()} | {
            "lr": step_result.lr,
            "grad_norm": step_result.grad_norm,
            "images_per_second": state.window_steps * batch / seconds,
            "data_wait": self.waited / seconds,
            "skipped": state.skipped,
        }
        if (peak := peak_memory(self.world.device)) is not None:
            row["peak_memory_bytes"] = peak
        slow = slow_loader(self.waited, seconds, self.world.device, self.recipe.data.num_workers)
        self.slow_windows += slow is not None
        if slow is not None and self.slow_windows == SLOW_WINDOWS:
            self.progress.warn(slow)
        state.window, state.window_steps = {}, 0
        self.window_since, self.waited = time.monotonic(), 0.0
        self.writer.record("train", state.step, row)

    def _evaluate(self) -> None:
        """Evaluate the weights and their moving average, keep the best; on a signal save without it."""
        state, session, began = self.state, self.session, time.monotonic()
        models = {"": session.model} | ({"ema_": session.ema.module} if session.ema is not None else {})
        for model in models.values():
            self.world.broadcast_tensors(model.buffers())
        if state.step <= self.recipe.train.precise_bn_steps and not recompute_statistics(
            session, state.step, stopped=lambda: self.stop.number != 0, advance=self.progress.recomputing
        ):
            self._stop(max(self.world.gather(self.stop.number)))
        self.world.on_main(lambda: require_finite_weights(session, state, self.run_dir))
        try:
            with evaluation_explained(session, self.run_dir.path):
                evaluated = evaluate_models(
                    session.task,
                    models,
                    self.world,
                    batch_size=self.recipe.eval.batch_size,
                    num_workers=self.recipe.data.num_workers,
                    stopped=lambda: self.stop.number != 0,
                    advance=self.progress.evaluating,
                )
        except NonFiniteEvaluationError as error:
            raise UserError(f"After step {state.step}: {error}\n{still_good(state, self.run_dir)}\n{see('nan-loss')}") from error
        if evaluated is None:
            self._stop(max(self.world.gather(self.stop.number)))
            return
        seconds = time.monotonic() - began
        results = {name: found.metrics for name, found in evaluated.items()}
        averaged = {f"ema_{name}": value for name, value in results.get("ema_", {}).items() if isinstance(value, float)}
        state.evaluated, state.metrics = state.step, results[""] | averaged
        winner = state.choose_best(results, session.task.main_metric)
        self.writer.record("eval", state.step, state.metrics | {"seconds": seconds})
        self.writer.save_weights(state, best=None if winner is None else evaluated[winner])
        self.progress.evaluated(state.step, state.metrics, winner is not None, seconds)
        self.writer.draw_curves(interval=CURVES_SECONDS)
        self._call("on_evaluation")
        self.window_since += time.monotonic() - began

    def _test(self) -> None:
        """Evaluate the best weights on the test set, once in the life of a run; see `final_test`."""
        found = self.world.on_main(lambda: read_final_test(self.run_dir, self.recipe.data.test_split))
        if found is None:
            test = self.session.task.test if isinstance(self.session.task, HasTestSet) else None
            if test is None:
                return
            with evaluation_explained(self.session, self.run_dir.path):
                found = run_final_test(
                    self.session, test, self.state, self.run_dir, lambda: self.stop.number != 0, self.progress.evaluating
                )
            if found is None:
                self._stop(max(self.world.gather(self.stop.number)))
                return
        self.tested = found
        if not self.world.on_main(lambda: self.writer.metrics_log.rows("test")):
            self.writer.record("test", self.state.step, found.row())

    def _note_gap(self) -> None:
        """Say where the last weights do much better with the statistics of a batch than in evaluation mode."""
        try:
            gap = measure_gap(self.session, self.state.step)
        except Exception as error:  # the run is over and saved
            self.progress.warn(
                f"The running statistics were not compared with those of a batch ({type(error).__name__}: {error})."
            )
            return
        if gap is not None and gap.is_large():
            self.progress.say(gap.note(self.session, self.state.step))

    def _stop(self, number: int) -> None:
        self.status = "stopped"
        self.writer.save_checkpoint(self.state)
        self.writer.draw_curves()
        name = signal.Signals(number).name
        self.progress.say(f"Stopped by {name}; saved after step {self.state.step}. Resume with: {self._resume_command()}")
        raise Interrupted(number)

    def _call(self, point: str) -> None:
        """Call the callbacks; where one fails, save before the exception goes on."""
        try:
            self.is_stopped |= self.callbacks.call(point)
        except Exception as error:
            if self.callbacks.left_model_intact:
                self.writer.save_checkpoint(self.state)
                error.add_note(f"The run is saved after step {self.state.step}: stvit_cli.resume({str(self.run_dir.path)!r})")
            raise

    def _view(self) -> TrainingView:
        state, last = self.state, self.last_step
        return TrainingView(
            step=state.step,
            num_steps=self.timeline.num_steps,
            epoch=self.timeline.epoch(state.step),
            losses=read_only(last.losses if last is not None else {}),
            lr=last.lr if last is not None else 0.0,
            metrics=read_only(state.metrics),
            best=read_only(state.best.get("metrics", {})),
            run_dir=self.run_dir.path,
            model=self.session.model,
            is_main_process=self.world.is_main,
        )

    def _stopped_by_callback(self) -> dict[str, float]:
        self.status = "stopped"
        self.progress.say(
            f"Stopped by a callback; saved after step {self.state.step} of {self.timeline.num_steps}. "
            f"Resume with: {self._resume_command()}"
        )
        return self._result()

    def _resume_command(self) -> str:
        return shell_command("stvit", "train", "--resume", self.run_dir.path)

    def _result(self) -> dict[str, float]:
        state = self.state
        best = state.best
        return {
            **({**best["metrics"], "best_epoch": self.timeline.epoch(best["step"])} if best else {}),
            "epochs": self.timeline.epoch(state.step),
            "steps": state.step,
            "seconds": round(state.seconds, 1),
            **({"stopped_early": self._is_stopped_early()} if self.recipe.schedule.patience is not None else {}),
            **{f"last_{name}": value for name, value in state.metrics.items() if isinstance(value, float)},
            **({f"test_{name}": value for name, value in self.tested.metrics.items()} if self.tested is not None else {}),
        }
