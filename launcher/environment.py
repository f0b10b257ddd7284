"""Environments of Slurm's commands and of the ranks, so that the profile decides and not the submitting shell.

Standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

ADDRESS = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})
"""Variables that tell Slurm's commands how to reach the controller."""
JOB = ADDRESS | {
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_CLUSTER_NAME",
    "SLURM_JOBID",
    "SLURM_JOB_ACCOUNT",
    "SLURM_JOB_END_TIME",
    "SLURM_JOB_GPUS",
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_QOS",
    "SLURM_JOB_START_TIME",
    "SLURM_JOB_UID",
    "SLURM_JOB_USER",
    "SLURM_RESTART_COUNT",
    "SLURM_SUBMIT_DIR",
    "SLURM_SUBMIT_HOST",
}
"""Variables that describe a job to itself; srun takes none of them as an option, except for the job's id."""
SLURM = re.compile(r"(SLURM|SLURMD|SRUN|SBATCH|SALLOC|SCANCEL|SQUEUE|SINFO|SCONTROL)_")
"""Prefixes of the variables through which Slurm's commands take options."""
PLACE = re.compile(
    r"(LOCAL_|ROLE_|GROUP_|CROSS_|NODE_)?RANK|(LOCAL_|ROLE_|GROUP_)?WORLD_SIZE|LOCAL_SIZE|CROSS_SIZE|ROLE_NAME|MASTER_(ADDR|PORT)"
    r"|(TORCHELASTIC|PET)_\w+|TORCH_DISABLE_SHARE_RDZV_TCP_STORE|NCCL_(COMM_ID|HOSTID)"
    r"|(OMPI_COMM_WORLD|OMPI_UNIVERSE|PMI|PMI2|PMIX|MPI_LOCAL|MV2_COMM_WORLD|HYDI|PALS)\w+"
)
"""Variables through which torchrun, DeepSpeed, NCCL and MPI tell a process its rank and job."""
DEVICES = frozenset(
    {"CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"}
)
"""GPUs of the submitting machine; Slurm sets those of a job."""


def for_commands(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of Slurm's commands, and therefore of the jobs they queue."""
    return {
        name: value
        for name, value in environ.items()
        if name in ADDRESS or not (SLURM.match(name) or PLACE.fullmatch(name) or name in DEVICES)
    }


def for_ranks(own: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of srun inside a job, and therefore of the ranks. `own` are the profile's variables.

    A script may have been queued by hand from any shell, and Slurm itself passes options to a job as variables.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if name in JOB or not (SLURM.match(name) or PLACE.fullmatch(name))
    }
    return kept | dict(own)


def unheeded(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Shell variables through which sbatch would have overridden the profile or contacted another cluster."""
    names = (name for name in environ if name.startswith("SBATCH_") or name == "SLURM_CLUSTERS")
    return sorted(f"{name}={environ[name]}" for name in names)
