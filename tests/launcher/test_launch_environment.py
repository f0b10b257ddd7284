"""What of a shell's environment reaches Slurm's commands and the ranks."""

import pytest

from launcher.environment import for_commands, for_ranks, unheeded
from launcher.profile import ClusterProfile
from onediff.config.section import validated
from onediff.errors import UserError

# The input variables in the manuals of srun, sbatch, squeue, sinfo, scancel and scontrol, and what srun gives to a task.
SLURM = {
    "SBATCH": """
        ACCOUNT ACCTG_FREQ ARRAY_INX BATCH CLUSTERS CONSTRAINT CONTAINER CORE_SPEC CPUS_PER_GPU DEBUG DELAY_BOOT
        DISTRIBUTION ERROR EXCLUSIVE EXPORT GET_USER_ENV GPUS GPUS_PER_NODE GPUS_PER_SOCKET GPUS_PER_TASK
        GPU_BIND GPU_FREQ GRES GRES_FLAGS HINT IGNORE_PBS INPUT JOB_NAME MEM_BIND MEM_PER_CPU MEM_PER_GPU
        MEM_PER_NODE NETWORK NO_KILL NO_REQUEUE OPEN_MODE OUTPUT OVERCOMMIT PARTITION POWER PROFILE QOS REQUEUE
        REQ_SWITCH RESERVATION SIGNAL SPREAD_JOB THREADS_PER_CORE THREAD_SPEC TIMELIMIT USE_MIN_NODES WAIT
        WAIT4SWITCH WAIT_ALL_NODES WCKEY
    """,
    "SCANCEL": """
        ACCOUNT BATCH CTLD FULL HURRY INTERACTIVE NAME PARTITION QOS STATE USER VERBOSE WCKEY
    """,
    "SCONTROL": """
        ALL FEDERATION FUTURE LOCAL SIBLING
    """,
    "SINFO": """
        ALL FEDERATION FORMAT LOCAL PARTITION SORT
    """,
    "SLURMD": """
        DEBUG NODENAME
    """,
    "SLURM": """
        ACCOUNT ACCTG_FREQ BCAST BCAST_EXCLUDE BITSTR_LEN BURST_BUFFER CLUSTERS COMPRESS CONF_OUT CONSTRAINT
        CORE_SPEC CPUS_PER_GPU CPUS_PER_TASK CPU_BIND CPU_FREQ_REQ DEBUG DEBUG_FLAGS DELAY_BOOT DEPENDENCY
        DISABLE_STATUS DISTRIBUTION DIST_PLANESIZE EPILOG EXACT EXCLUSIVE EXIT_ERROR EXIT_IMMEDIATE EXPORT_ENV
        GPUS GPUS_PER_NODE GPUS_PER_SOCKET GPUS_PER_TASK GPU_BIND GPU_FREQ GRES GRES_FLAGS GTIDS HINT HOSTFILE
        IMMEDIATE JOB_NAME JOB_NUM_NODES KILL_BAD_EXIT LABELIO LOCALID MEM_BIND MEM_PER_CPU MEM_PER_GPU
        MEM_PER_NODE MPI_TYPE NETWORK NNODES NODEID NODELIST NO_KILL NPROCS NTASKS NTASKS_PER_CORE NTASKS_PER_GPU
        NTASKS_PER_NODE NTASKS_PER_SOCKET NTASKS_PER_TRES OPEN_MODE OVERCOMMIT OVERLAP PARTITION
        PMI_KVS_NO_DUP_KEYS POWER PROCID PROFILE PROLOG QOS REMOTE_CWD REQ_SWITCH RESERVATION RESV_PORTS
        SEND_LIBS SIGNAL SPREAD_JOB SRUN_REDUCE_TASK_EXIT_MSG STDERRMODE STDINMODE STDOUTMODE STEP_GRES STEP_ID
        STEP_KILLED_MSG_NODE_ID STEP_NODELIST STEP_NUM_TASKS STEP_TASKS_PER_NODE TASKS_PER_NODE TASK_EPILOG
        TASK_PROLOG TEST_EXEC THREADS THREADS_PER_CORE THREAD_SPEC TIMELIMIT TIME_FORMAT TOPO_LEN UMASK
        UNBUFFEREDIO USE_MIN_NODES WAIT WAIT4SWITCH WCKEY WORKING_DIR
    """,
    "SQUEUE": """
        ACCOUNT ALL ARRAY FEDERATION FORMAT FORMAT2 LICENSES LOCAL NAMES PARTITION PRIORITY QOS SIBLING SORT
        STATES USERS
    """,
    "SRUN": """
        CONTAINER CPUS_PER_TASK EXPORT_ENV
    """,
}
PLACES = """
    RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE LOCAL_SIZE NODE_RANK GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_WORLD_SIZE
    ROLE_NAME CROSS_RANK CROSS_SIZE MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID TORCHELASTIC_RESTART_COUNT
    TORCHELASTIC_MAX_RESTARTS TORCHELASTIC_USE_AGENT_STORE TORCH_DISABLE_SHARE_RDZV_TCP_STORE PET_NNODES PET_NPROC_PER_NODE
    PET_NODE_RANK PET_RDZV_ENDPOINT PET_RDZV_ID PET_STANDALONE NCCL_COMM_ID NCCL_HOSTID OMPI_COMM_WORLD_RANK
    OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_LOCAL_RANK OMPI_COMM_WORLD_LOCAL_SIZE OMPI_COMM_WORLD_NODE_RANK OMPI_UNIVERSE_SIZE
    PMI_RANK PMI_SIZE PMI_FD PMI_PORT PMI_ID PMI2_JOBID PMIX_RANK PMIX_NAMESPACE PMIX_SERVER_URI2 MPI_LOCALRANKID
    MPI_LOCALNRANKS MV2_COMM_WORLD_RANK MV2_COMM_WORLD_SIZE MV2_COMM_WORLD_LOCAL_RANK HYDI_CONTROL_FD PALS_RANKID
"""
KEPT = """
    PATH HOME USER LANG PYTHONPATH VIRTUAL_ENV HF_HOME HF_TOKEN MLFLOW_TRACKING_URI NCCL_DEBUG NCCL_SOCKET_IFNAME
    OMP_NUM_THREADS OMPI_MCA_btl I_MPI_FABRICS TORCH_NCCL_ASYNC_ERROR_HANDLING http_proxy SLURM_CONF
"""


def test_no_variable_of_slurm_or_of_a_launcher_reaches_a_job_or_its_ranks():
    slurm = [f"{family}_{name}" for family, names in SLURM.items() for name in names.split()]
    kept = KEPT.split()
    shell = dict.fromkeys([*slurm, *PLACES.split(), *kept, "SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES"], "leaked")
    assert len(slurm) > 200 and sorted(for_commands(shell)) == sorted(kept)
    ranks = for_ranks({"SLURM_CPU_BIND": "cores", "NCCL_DEBUG": "INFO"}, shell)
    # A job's id names it to srun; its GPUs are named by Slurm; what the profile asks for is asked for.
    assert sorted(ranks) == sorted([*kept, "SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES", "SLURM_CPU_BIND"])
    assert ranks["SLURM_CPU_BIND"] == "cores" and ranks["NCCL_DEBUG"] == "INFO"
    wishes = {"SBATCH_PARTITION": "low", "SLURM_CLUSTERS": "other", "PATH": "/bin"}
    assert unheeded(wishes) == ["SBATCH_PARTITION=low", "SLURM_CLUSTERS=other"]


@pytest.mark.parametrize("option", ["--clusters=other", "-Mother", "-M other", "--cluster other"])
def test_a_profile_does_not_send_jobs_to_another_cluster(option):
    with pytest.raises(UserError, match=r"sbatch: '.*': jobs are followed by .*; run `onediff launch` on a login node"):
        validated(ClusterProfile, {"tasks_per_node": 2, "sbatch": [option]}, "profile.yaml")
    validated(ClusterProfile, {"tasks_per_node": 2, "sbatch": ["--cluster-constraint=here"]}, "profile.yaml")


def test_a_profile_does_not_give_ranks_their_place():
    assert ClusterProfile(tasks_per_node=1, environment={"MASTER_PORT": "29500"}).environment
    with pytest.raises(ValueError, match="WORLD_SIZE: is set by the launcher"):
        ClusterProfile(tasks_per_node=1, environment={"WORLD_SIZE": "8"})
