#!/usr/bin/env bash
# Train on a cluster with SLURM: one torchrun a node, as many processes as the node has GPUs.
#
#   sbatch --nodes 2 tools/train_slurm.sh --config-file configs/atss/atss_R_50_FPN_1x.yaml OUTPUT_DIR training_dir/R_50
#
# OUTPUT_DIR must be on a file system that all nodes share. Three minutes before the time is over, or when the node is
# taken back, the run saves and the job queues itself again, to go on from there.
#SBATCH --job-name=atss
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail

. .venv/bin/activate
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --cpus-per-task "$SLURM_CPUS_PER_TASK" torchrun \
    --nnodes "$SLURM_NNODES" --nproc_per_node gpu --max-restarts 3 \
    --rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID" --rdzv_endpoint "$first_node:$((20000 + SLURM_JOB_ID % 20000))" \
    tools/train_net.py "$@" &
training=$!

stop() {
    scancel --signal=TERM "$SLURM_JOB_ID" # to the processes of srun, which save
    wait "$training" || true
    scontrol requeue "$SLURM_JOB_ID"
}
trap stop TERM
wait "$training"
