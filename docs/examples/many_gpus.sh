#!/usr/bin/env bash
# Trains on the GPUs of one machine, and resumes where a run has stopped: the same command again.
#
#   DATA=/data/imagenet bash docs/examples/many_gpus.sh                            # deit300 of stvit-s on eight GPUs
#   DATA=/data/imagenet MODEL=stvit-b GPUS=4 bash docs/examples/many_gpus.sh train.batch_size_per_device=auto
#   GPUS=2 bash docs/examples/many_gpus.sh train.device=cpu                        # two processes, without a GPU
#
# Words after it are keys of the recipe. Without DATA it trains on the digits in the package (recipe quickstart).
set -eu
RUN=${RUN:-runs/many-gpus}
GPUS=${GPUS:-8}

if [ -e "$RUN/recipe.yaml" ]; then
  WHAT=(--resume "$RUN")
elif [ -n "${DATA:-}" ]; then
  WHAT=(--recipe "${RECIPE:-deit300}" --data "$DATA" --model "${MODEL:-stvit-s}" --output "$RUN")
else
  WHAT=(--recipe quickstart --output "$RUN")
fi
torchrun --standalone --nproc-per-node "$GPUS" -m stvit_cli train "${WHAT[@]}" "$@"
