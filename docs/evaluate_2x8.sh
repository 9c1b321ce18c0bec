#!/bin/bash
# A 50,000-image evaluation of MAR-H on two nodes with eight GPUs each, under SLURM. Submit it from the root of the
# repository: `sbatch docs/evaluate_2x8.sh`.
#
# There is one torchrun per node. Ranks take blocks of images from one queue, and save their sums every two minutes in
# the output folder. It must be on a file system that both nodes see and that supports locks. If a rank dies, all ranks
# are restarted (three times at most), and its blocks go to the ranks that ask first. When the time limit is reached,
# submit the same file again: the evaluation continues.
#SBATCH --job-name=mar_huge
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=08:00:00
#SBATCH --output=%x-%j.log

set -euo pipefail
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=8
# A node that restarts its ranks because the other node did does not count it as a restart. In the store that torchrun
# shares with its ranks, the two nodes would then use different names (seen with torch 2.14). This gives the ranks a
# store of their own.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

cd MAR_DiSA
# Since SLURM 22.05 srun does not inherit the cores of a task from sbatch. Without them the eight ranks of a node can
# end up on one core.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" ../.venv/bin/torchrun \
  --nnodes=2 --nproc_per_node=8 --max-restarts=3 \
  --rdzv_backend=c10d --rdzv_endpoint="$first_node:29500" --rdzv_id="$SLURM_JOB_ID" \
  main_mar.py --evaluate --model mar_huge --diffloss_d 12 --diffloss_w 1536 --resume pretrained_models/mar/mar_huge \
  --num_images 50000 --eval_bsz 128 --num_iter 64 --cfg 3.3 --cfg_schedule linear \
  --diff_sampler DiSA --diff_upper_steps 50 --diff_lower_steps 5 --output_dir output_dir/mar_huge
