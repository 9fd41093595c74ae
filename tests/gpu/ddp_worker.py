"""Train four steps of a small model by the processes that torchrun started, and write losses and weights. Not a test."""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stvit_cli.models import create_model
from stvit_cli.models.kernels import use_kernels
from stvit_cli.tasks.base import freeze_batch_norms

BATCH, STEPS = 4, 4


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output")
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--sync-bn", action="store_true")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--alone", action="store_true", help="without DDP")
    options = parser.parse_args()
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device(options.device, rank) if options.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    model: nn.Module = create_model("stvit-nano", num_classes=3).to(device, memory_format=torch.channels_last)
    if options.sync_bn:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    else:  # statistics of half of a batch are others
        freeze_batch_norms(model)
    use_kernels(model, device.type, options.kernels)
    parallel = model
    if not options.alone:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", device_id=device if device.type == "cuda" else None)
        parallel = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator, losses = torch.Generator().manual_seed(1), []
    each = BATCH // size
    for _ in range(STEPS):
        images, target = torch.randn(BATCH, 3, 48, 64, generator=generator), torch.randint(3, (BATCH,), generator=generator)
        mine = slice(rank * each, (rank + 1) * each)
        loss = F.cross_entropy(parallel(images[mine].to(device)), target[mine].to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach()
        if size > 1:
            dist.all_reduce(mean)
        losses.append(mean.item() / size)
    if rank == 0:
        weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        torch.save({"losses": losses, "weights": weights}, options.output)
    if not options.alone:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
