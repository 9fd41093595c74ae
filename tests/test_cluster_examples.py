"""The examples of many machines are valid: shell scripts, the Kubeflow job, the container file. Nothing here has a cluster."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field
from torch.distributed.run import get_args_parser

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
SLURM, JOB, CONTAINER = EXAMPLES / "slurm.sh", EXAMPLES / "pytorchjob.yaml", EXAMPLES / "Containerfile"


class Strict(BaseModel):
    """What the API server refuses is refused here: unknown fields, other types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Variable(Strict):
    name: str = Field(pattern=r"^[A-Z_]+$")
    value: str


class Resources(Strict):
    limits: dict[str, int | str]
    requests: dict[str, int | str]


class Mount(Strict):
    name: str
    mountPath: str = Field(pattern="^/")  # noqa: N815
    readOnly: bool = False  # noqa: N815


class Container(Strict):
    name: Literal["pytorch"]  # the operator looks for it
    image: str
    env: list[Variable]
    command: list[str]
    args: list[str]
    resources: Resources
    volumeMounts: list[Mount]  # noqa: N815


class Volume(Strict):
    name: str
    persistentVolumeClaim: dict[str, str | bool] | None = None  # noqa: N815
    emptyDir: dict[str, str] | None = None  # noqa: N815


class PodSpec(Strict):
    terminationGracePeriodSeconds: int  # noqa: N815
    containers: list[Container] = Field(min_length=1)
    volumes: list[Volume]


class Template(Strict):
    spec: PodSpec


class Replicas(Strict):
    replicas: int = Field(gt=0)
    restartPolicy: Literal["Always", "OnFailure", "Never", "ExitCode"]  # noqa: N815
    template: Template


class RunPolicy(Strict):
    cleanPodPolicy: Literal["None", "Running", "All"]  # noqa: N815
    backoffLimit: int  # noqa: N815


class JobSpec(Strict):
    nprocPerNode: str  # noqa: N815
    runPolicy: RunPolicy  # noqa: N815
    pytorchReplicaSpecs: dict[Literal["Master", "Worker"], Replicas]  # noqa: N815


class PyTorchJob(Strict):
    """The part of kubeflow.org/v1's PyTorchJob and of Kubernetes' pods that the example uses."""

    apiVersion: Literal["kubeflow.org/v1"]  # noqa: N815
    kind: Literal["PyTorchJob"]
    metadata: dict[Literal["name"], str]
    spec: JobSpec


def job() -> PyTorchJob:
    return PyTorchJob.model_validate(yaml.safe_load(JOB.read_text()))


def check_shell(script: str) -> None:
    """Check by bash, and by shellcheck where it is installed."""
    commands = [["bash", "-n"]]
    commands += [["shellcheck", "--shell=bash", "--exclude=SC2086", "-"]] if shutil.which("shellcheck") else []
    for command in commands:
        done = subprocess.run(command, input=script, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def torchrun_options(script: str) -> Any:
    """Return the options of torchrun in a script, read by torchrun itself."""
    words = shlex.split(re.sub(r"\\\n", " ", script).partition("torchrun ")[2].partition("||")[0].replace("$", "S"))
    for index, word in enumerate(words):
        if word in ("--nproc-per-node", "--nnodes") and not words[index + 1].isdecimal():
            words[index + 1] = "8"  # a variable
    return get_args_parser().parse_args(words[: words.index("stvit_cli") + 3])


def test_the_scripts_are_valid_shell() -> None:
    check_shell(SLURM.read_text())
    for replicas in job().spec.pytorchReplicaSpecs.values():
        check_shell(replicas.template.spec.containers[0].args[0])


@pytest.mark.parametrize("kind", ["slurm", "kubernetes"])
def test_torchrun_and_stvit_know_the_options(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    from stvit_cli.cli import main

    script = (
        SLURM.read_text() if kind == "slurm" else job().spec.pytorchReplicaSpecs["Master"].template.spec.containers[0].args[0]
    )
    options = torchrun_options(script)
    assert (options.rdzv_backend, options.max_restarts, options.training_script) == ("c10d", 3, "stvit_cli")
    assert options.training_script_args[0] == "train"
    given = set(re.findall(r"--(?:resume|recipe|data|model|output)\b", script))
    assert given == {"--resume", "--recipe", "--data", "--model", "--output"}
    main(["train", "--help"])
    assert given <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))


def test_the_job_fits_together() -> None:
    master, worker = (job().spec.pytorchReplicaSpecs[name] for name in ("Master", "Worker"))
    assert (master.replicas, master.template) == (1, worker.template)
    pod = master.template.spec
    container = pod.containers[0]
    assert {mount.name for mount in container.volumeMounts} == {volume.name for volume in pod.volumes}
    assert container.resources.limits["nvidia.com/gpu"] == int(job().spec.nprocPerNode) == 8
    stop = next(int(variable.value) for variable in container.env if variable.name == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    assert stop < pod.terminationGracePeriodSeconds, "torchrun ends before the kubelet kills it"
    assert any(mount.mountPath == "/dev/shm" for mount in container.volumeMounts)
    tag = re.search(r"-t (stvit:\S+)", CONTAINER.read_text())
    assert tag is not None
    assert container.image == tag[1]


def test_the_container_file_builds_from_the_wheel() -> None:
    text = re.sub(r"^#.*\n", "", CONTAINER.read_text(), flags=re.MULTILINE)
    lines = [line.split(maxsplit=1) for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]
    steps = [word for word, _ in lines]
    assert set(steps) <= {"ARG", "FROM", "ENV", "COPY", "RUN", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert steps[:2] == ["ARG", "FROM"]
    assert steps.count("FROM") == 1
    base = dict(lines)["ARG"].partition("=")[2]
    assert re.fullmatch(r"[a-z0-9]+/[a-z0-9]+:[\w.-]+", base), "a short name with a tag and no host"
    assert dict(lines)["FROM"] == "${BASE}"
    (copied,) = [rest.split() for word, rest in lines if word == "COPY"]
    assert Path(copied[0]).parent == Path("dist")
    assert Path("dist/stvit-0.2.0-py3-none-any.whl").match(copied[0])  # as hatchling names it: tests/test_wheel.py
    for rest in (rest for word, rest in lines if word == "RUN"):
        check_shell(rest)
    assert json.loads(dict(lines)["CMD"])[0] == "stvit"
    assert steps.index("COPY") < steps.index("RUN") < steps.index("USER"), "installed as root, run as a user"
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"\.whl\)\[([a-z,]+)\]", text)) <= extras.keys()
