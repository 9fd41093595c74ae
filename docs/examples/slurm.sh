#!/bin/bash
#SBATCH --job-name=stvit --nodes=4 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=80 --time=24:00:00
#SBATCH --signal=USR1@300 --requeue --open-mode=append
# Trains on four nodes of eight GPUs, and resumes by itself after a time limit, a preemption or a node that failed.
#
#   sbatch --export=ALL,DATA=/data/imagenet,RUN=/shared/runs/stvit-b docs/examples/slurm.sh
#
# DATA and RUN are on a file system shared by all nodes. The number of nodes may change between two starts: the global batch stays.
set -u
RECIPE=${RECIPE:-deit300}
MODEL=${MODEL:-stvit-b}
GPUS=${GPUS:-8} # of a node

if [ -e "$RUN/recipe.yaml" ]; then
  WHAT=(--resume "$RUN")
else
  WHAT=(--recipe "$RECIPE" --data "$DATA" --model "$MODEL" --output "$RUN")
fi
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240 # seconds to finish the step and save
HEAD_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun --signals-to-handle SIGTERM,SIGINT,SIGUSR1 --nnodes "$SLURM_NNODES" --nproc-per-node "$GPUS" --max-restarts 3 \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$HEAD_NODE:29400" \
  -m stvit_cli train "${WHAT[@]}" ||
  { [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ] && scontrol requeue "$SLURM_JOB_ID"; }
