#!/bin/bash
# One run as a SLURM job that may be preempted, and that queues itself again until the run is complete:
#
#   sbatch recipes/slurm.sh recipes/ablation_patch70.toml --seed 1
#
# `p2pzoo run` saves and exits with 143 on SIGTERM, which SLURM sends before it takes the node or at the time limit
# (--signal), and before --max-time is over. The same command then resumes with bit-identical results.

#SBATCH --job-name=p2pzoo
#SBATCH --time=04:00:00
#SBATCH --gpus=1
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append

srun p2pzoo run "$@" --max-time 3h57m
code=$?
if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
