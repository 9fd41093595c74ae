"""MLflow: the store of ``MLFLOW_TRACKING_URI`` (a server, a database, a folder), else MLflow's default in the working folder."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stvit_cli.engine.loggers.base import PROJECT, LoggedImage, LoggedRun, Status
from stvit_cli.errors import UserError
from stvit_cli.recipe.yaml import flow
from stvit_cli.utils.text import first_line

_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_PARAMS_IN_A_CALL = 100  # MLflow's limit
_PARAM_LENGTH = 6000  # and this one


def connect() -> None:
    """Raise UserError where MLflow cannot open its store."""
    from mlflow.tracking import MlflowClient

    try:
        MlflowClient().search_experiments(max_results=1)
    except Exception as error:  # whatever its stores raise
        reason = first_line(error)[:200]
        raise UserError(
            f"train.loggers: MLflow cannot open its store: {reason}\n"
            "Set MLFLOW_TRACKING_URI to a server or a database; a database needs all of MLflow: pip install 'stvit[mlflow]'\n"
            "A folder, such as MLFLOW_TRACKING_URI=mlruns, needs MLFLOW_ALLOW_FILE_STORE=true too."
        ) from error


class MlflowLogger:
    """See `Logger`."""

    hides_repeated = False

    def __init__(self, run: LoggedRun) -> None:
        import mlflow
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        # A resumed run may start in another working directory, in which a store would be another one.
        run_id, _, uri = (run.saved_id or "").partition(" ")
        uri = uri or mlflow.get_tracking_uri()
        self._client = MlflowClient(tracking_uri=uri)
        if run_id:
            self._client.update_run(run_id, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self._client.get_experiment_by_name(name)
            experiment_id = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
            run_id = self._client.create_run(experiment_id, run_name=run.name).info.run_id
            params = [Param(key, flow(value)[:_PARAM_LENGTH]) for key, value in run.config.items()]
            for some in _batches(params, _PARAMS_IN_A_CALL):
                self._client.log_batch(run_id, params=some)
            for key, value in run.environment.items():
                self._client.set_tag(run_id, f"environment.{key}", flow(value))
        self._run_id = run_id
        self.id, self.location = f"{run_id} {uri}", f"run {run_id} in {uri}"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        # Not every store takes what is not finite.
        finite = [Metric(_name(name), value, now, step) for name, value in metrics.items() if math.isfinite(value)]
        self._client.log_batch(self._run_id, metrics=finite)

    def log_images(self, step: int, images: Sequence[LoggedImage]) -> None:
        for image in images:
            shown = image.decode()
            self._client.log_image(self._run_id, shown, artifact_file=f"images/step_{step:08d}/{_name(image.name)}.png")

    def finish(self, status: Status) -> None:
        self._client.set_terminated(self._run_id, status=_STATUS[status])


def _name(text: str) -> str:
    """Return a name that MLflow takes: letters, digits and ``_ - . / space``."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-./ ") else "_" for c in text)


def _batches(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))
