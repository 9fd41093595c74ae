"""What a training loop needs: the model on its device and wrapped, the optimizer, the batches, the timeline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stvit_cli.data.loader import Loader, SampleKey, TrainBatches, build_train_loader
from stvit_cli.engine.batching import BatchPlan, plan_batches
from stvit_cli.engine.determinism import strict
from stvit_cli.engine.distributed import World
from stvit_cli.engine.freezing import GradualUnfreezing, freeze, set_training_mode
from stvit_cli.engine.loggers.group import require_installed
from stvit_cli.engine.optim import build_optimizer, check_optimizer
from stvit_cli.engine.schedule import Timeline, build_timeline
from stvit_cli.engine.seeding import kept_generators
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.base import Preparation, Task, move

logger = logging.getLogger(__name__)

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Share of the GPU's memory that a probed batch may fill: the rest is for fragmentation and the communication buffers.
FULL = 0.9


@dataclass
class Session:
    """``model`` is the task's own; ``parallel`` is what a training step calls: the same, or DDP around it."""

    task: Task
    recipe: Recipe
    world: World
    plan: BatchPlan
    timeline: Timeline
    model: nn.Module
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    preparation: Preparation
    unfreezing: GradualUnfreezing | None = None
    strict_order: bool = False
    """A training step takes deterministic algorithms alone; see `determinism.strict`."""
    earlier_subset: str | None = None
    """The hash of the subset that the metrics so far are of; kept while the run is resumed without one."""

    def unfreeze(self, step: int) -> None:
        """Freeze and unfreeze what gradual unfreezing says for the step after ``step`` steps."""
        if self.unfreezing is not None and self.unfreezing.apply(step):
            set_training_mode(self.task, self.recipe.finetune)
            self.parallel = _distribute(self.model, self.world)  # DDP looks once at what is trained

    def autocast(self) -> torch.autocast:
        dtype = AUTOCAST[self.recipe.train.precision]
        return torch.autocast(self.world.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def build_session(task: Task, recipe: Recipe, world: World, micro_batch_before: int | None = None) -> Session:
    """Move, freeze and wrap the model; make the optimiser.

    Args:
        task: model, data and loss.
        recipe: the settings of the run.
        world: its processes.
        micro_batch_before: see `plan_batches`.

    Raises:
        UserError: the batch cannot be met, or the settings do not go together with the device.
    """
    train, device = recipe.train, world.device
    timeline, chosen = world.on_main(lambda: _check_settings(task, recipe, world))
    freeze(task, recipe.finetune)
    task.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if train.sync_bn and world.size > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(task.model)  # in place: the model itself is no batch norm
    set_training_mode(task, recipe.finetune)
    preparation = _prepare(task, recipe, device, chosen)
    probe = _probe(task, recipe, world) if device.type == "cuda" else None
    plan = plan_batches(train, world.size, task.batch_multiple, probe, micro_batch_before)
    size = min(plan.micro_batch_size, max(2, task.batch_multiple))
    strict_order = device.type == "cuda" and task.is_deterministic and _has_fixed_order(task, recipe, world, size)
    optimizer = build_optimizer(task, recipe.optim, recipe.peak_lr)
    unfreezing = None
    if recipe.finetune.unfreeze_epochs is not None:
        unfreezing = GradualUnfreezing(task, recipe.finetune.unfreeze_epochs * timeline.steps_per_epoch)
        unfreezing.apply(0)
        set_training_mode(task, recipe.finetune)
    ema = ModelEmaV3(task.model, decay=train.ema_decay) if train.ema_decay is not None else None
    if train.compile:
        task.compile()
    return Session(
        task=task,
        recipe=recipe,
        world=world,
        plan=plan,
        timeline=timeline,
        model=task.model,
        parallel=_distribute(task.model, world),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=train.precision == "fp16"),
        ema=ema,
        preparation=preparation,
        unfreezing=unfreezing,
        strict_order=strict_order,
    )


def training_batches(session: Session, start_step: int) -> Loader:
    """Return this process's micro-batches from a step to the end of the run."""
    task, recipe, world = session.task, session.recipe, session.world
    batches = TrainBatches(
        len(cast(Sized, task.train_set)),
        seed=recipe.train.seed,
        repeats=recipe.augment.repeats,
        global_batch_size=session.plan.global_batch_size,
        micro_batch_size=session.plan.micro_batch_size,
        rank=world.rank,
        world_size=world.size,
        start_step=start_step,
        num_steps=session.timeline.num_steps,
        aspect_ratios=task.aspect_ratios,
        balance=task.class_balance,
        blocks=task.shuffle_blocks,
        drop_last=recipe.data.drop_last,
    )
    on_gpu = world.device.type == "cuda"
    return build_train_loader(task.train_set, batches, task.collate, recipe.data.num_workers, pin_memory=on_gpu)


def _distribute(model: nn.Module, world: World) -> nn.Module:
    if world.size == 1:
        return model
    # Batch-norm statistics are rank 0's: DDP hands them round before every step, the trainer before an evaluation.
    return DistributedDataParallel(model, device_ids=[world.device.index] if world.device.type == "cuda" else None)


def _check_settings(task: Task, recipe: Recipe, world: World) -> tuple[Timeline, tuple[str, ...]]:
    """Check the settings against data, model, device and number of processes: one checks for all, and chooses the kernels."""
    train = recipe.train
    timeline = build_timeline(recipe, len(cast(Sized, task.train_set)))
    plan_batches(train, world.size, task.batch_multiple)
    check_optimizer(recipe.optim)
    if train.sync_bn and world.size > 1 and world.device.type == "cpu":
        raise UserError("train.sync_bn needs GPUs: PyTorch has no synchronised batch norm for CPUs. Use train.sync_bn=false.")
    require_installed(recipe.loggers)
    # Here alone at first: kernels for a CPU are compiled, those for a GPU measured by one process.
    return timeline, _prepare(task, recipe, world.device).kernel_layers


def _prepare(task: Task, recipe: Recipe, device: torch.device, chosen: tuple[str, ...] | None = None) -> Preparation:
    """Prepare the model; on a GPU ``auto`` stands for the kinds of layers that are ``chosen``, if any were yet."""
    train = recipe.train
    kernels = chosen if chosen is not None and train.kernels == "auto" and device.type == "cuda" else train.kernels
    dtype = AUTOCAST[train.precision] or torch.float32
    return task.prepare(device.type, dtype, kernels=kernels, compile_blocks=train.compile)


def keep_kernels(session: Session, chosen: Sequence[str] | None) -> None:
    """Use the kernels for the kinds of layers that a run began with on a GPU, whatever this GPU would choose."""
    if chosen is not None and session.world.device.type == "cuda":
        session.preparation = _prepare(session.task, session.recipe, session.world.device, tuple(chosen))


def _probe(task: Task, recipe: Recipe, world: World) -> Callable[[int], bool]:
    """Return a function that tries a micro-batch of a size on every process's GPU; the answer is the same on all of them."""
    # The moments, the moving average and DDP's buckets come on top of what a forward and a backward pass take.
    copies = 2 + (recipe.train.ema_decay is not None) + (world.size > 1)
    later = copies * sum(p.numel() * p.element_size() for p in task.model.parameters())

    def fits(size: int) -> bool:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            with _without_trace(task):
                _try_batch(task, recipe, world.device, size)
            fine = torch.cuda.max_memory_allocated() + later <= FULL * torch.cuda.mem_get_info()[1]
        except torch.OutOfMemoryError:
            fine = False
        return all(world.gather(fine))

    return fits


def _has_fixed_order(task: Task, recipe: Recipe, world: World, size: int) -> bool:
    """Return whether a training step of ``size`` images runs by deterministic algorithms alone, on every process.

    A model of timm can have an operator without one. It is found here, before the first step.
    """
    said = ""
    try:
        with kept_generators(world.device), strict(), _without_trace(task):
            _try_batch(task, recipe, world.device, size)
    except (RuntimeError, UserError) as error:  # another failure will be met, and explained, in training
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    found = world.gather(said)
    if world.is_main and "determinis" in said:
        logger.warning("Resumed on a GPU, this run will not end with the same bits: %s", said[:200])
    return not any(found)


def _try_batch(task: Task, recipe: Recipe, device: torch.device, size: int) -> None:
    """Run a batch of one training image, ``size`` times, forward and backward."""
    dtype = AUTOCAST[recipe.train.precision]
    sample = task.train_set[SampleKey(0, 0, 0)]
    batch = move(task.collate([sample] * size), device)
    with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        loss = torch.stack(list(task.training_loss(task.model, batch).values())).sum()
    loss.backward()


@contextmanager
def _without_trace(task: Task) -> Iterator[None]:
    """Remove gradients and restore the buffers of the model after the block, also where it fails."""
    buffers = {name: buffer.clone() for name, buffer in task.model.named_buffers()}
    try:
        yield
    finally:
        task.model.zero_grad(set_to_none=True)
        for name, buffer in task.model.named_buffers():
            buffer.copy_(buffers[name])
