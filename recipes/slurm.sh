#!/bin/bash
# One run as a SLURM job that may be preempted, and that asks to be run again until it is done:
#
#   sbatch recipes/slurm.sh recipes/ablation_patch70.toml --seed 1
#
# `p2pzoo run` saves and ends with 143 when it is told to stop: by SLURM before it takes the node away or the time is over
# (--signal), or by itself (--max-time). Started again, the same command goes on to the same bits.

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
