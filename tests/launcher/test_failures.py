"""Known failures, by messages of public bug reports."""

import pytest

from launcher.failures import LEAVE_OUT, RESTART, STOP, STOP_AT_START, known
from launcher.outcome import judge
from launcher.profile import ClusterProfile
from launcher.record import Attempt
from launcher.rules import Rule, decide
from onediff.config.section import validated
from onediff.errors import UserError

CUDA_TAIL = """CUDA kernel errors might be asynchronously reported at some other API call, so the stack below may be wrong.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1.
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""
FRAMES = "\n".join(
    f"frame #{n}: <unknown function> + 0xe4271b (0x79eb37e4271b in /usr/lib/libtorch_cuda.so)" for n in range(40)
)
MESSAGES = [
    ("RuntimeError: CUDA error: uncorrectable ECC error encountered\n" + CUDA_TAIL, LEAVE_OUT, "ECC"),
    (
        "RuntimeError: cuda runtime error (39) : uncorrectable ECC error encountered at /x.cpp:265\nterminate called",
        LEAVE_OUT,
        "ECC",
    ),
    (
        "failed call to cuDevicePrimaryCtxRetain: CUDA_ERROR_ECC_UNCORRECTABLE: uncorrectable ECC error",
        LEAVE_OUT,
        "ECC",
    ),
    (
        "Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost.  Reboot the system",
        LEAVE_OUT,
        "GPU lost",
    ),
    ("Unable to determine the device handle for GPU0000:03:00.0: Unknown Error", LEAVE_OUT, "GPU lost"),
    (
        "NVRM: Xid (PCI:0000:81:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
        LEAVE_OUT,
        "GPU lost",
    ),
    ("  what():  CUDA error: unknown error\n" + CUDA_TAIL + FRAMES, LEAVE_OUT, "GPU driver"),
    ("RuntimeError: No CUDA GPUs are available", LEAVE_OUT, "GPU driver"),
    ("RuntimeError: CUDA error: device-side assert triggered\n" + CUDA_TAIL, STOP_AT_START, "CUDA assertion"),
    (
        "ScatterGatherKernel.cu:208: block: [885,0,0], thread: [12,0,0] Assertion `idx_dim >= 0 && idx_dim < index_size && "
        '"index out of bounds"` failed.',
        STOP_AT_START,
        "CUDA assertion",
    ),
    ("RuntimeError: CUDA error: no kernel image is available for execution on the device", STOP, "CUDA build"),
    ("RuntimeError: CUDA error: an illegal memory access was encountered\n" + CUDA_TAIL, RESTART, "CUDA memory access"),
    (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.15 GiB",
        RESTART,
        "lower micro_batch",
    ),
    (
        "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        RESTART,
        "out of memory",
    ),
    (
        "slurmstepd: error: Detected 1 oom_kill event in StepId=440575.0. Some of the step tasks have been OOM Killed.",
        RESTART,
        "memory_per_task_gb",
    ),
    ("slurmstepd: error: Detected 2 oom-kill event(s) in step 3756240.batch cgroup.", RESTART, "out of memory"),
    ("srun: error: nid001277: tasks 1-3: Out Of Memory", RESTART, "out of memory"),
    ("RuntimeError: DataLoader worker (pid 31) is killed by signal: Bus error. It is possible", RESTART, "/dev/shm"),
    ("RuntimeError: DataLoader worker (pid 4013) is killed by signal: Killed.", RESTART, "out of memory"),
    (
        "h:3468:3905 [4] NCCL WARN NET/IB : Got completion from peer 10.2.2.2<54862> with status=12 opcode=0",
        RESTART,
        "InfiniBand",
    ),
    ("init.cc:401 NCCL WARN Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 50000", STOP, "NCCL"),
    ("OSError: [Errno 107] Transport endpoint is not connected: '/data'", LEAVE_OUT, "storage"),
    ("OSError: [Errno 116] Stale file handle", RESTART, "storage"),
    ("RuntimeError: read(): fd 33 failed with Stale file handle", RESTART, "storage"),
    ("OSError: [Errno 122] Disk quota exceeded", STOP, "quota"),
    ("OSError: [Errno 24] Too many open files: '/x'", STOP_AT_START, "ulimit"),
    ("ModuleNotFoundError: No module named 'deepspeed'", STOP_AT_START, "Python"),
    (
        "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
        STOP_AT_START,
        "Python",
    ),
]


@pytest.mark.parametrize(("text", "action", "words"), MESSAGES)
def test_a_public_error_message_has_its_action_and_its_line(text, action, words):
    found = known(text.splitlines())
    assert found is not None and found.failure.action == action and words in found.words(), found


@pytest.mark.parametrize(
    "text",
    [
        "terminate called after throwing an instance of 'std::system_error'\n  what():  Transport endpoint is not connected",
        "RuntimeError: Connection closed by peer [10.0.0.1]:4242",
        "ValueError: the reason",
        "loading CUDA kernels; NCCL version 2.21.5+cuda12.4",
    ],
)
def test_what_a_lost_peer_or_anything_else_prints_is_not_known(text):
    assert known(text.splitlines()) is None


def ended(tmp_path, text: str, code: int = 1, said=(), rows=()):
    log = tmp_path / "one.1.rank1.log"
    log.write_text(text)
    note = {"rank": 1, "node": "b", "code": code, "ended": 1.0, "log": str(log), "last": text.splitlines()[-20:]}
    return judge(
        [note, {**note, "rank": 0, "node": "a", "code": 143, "ended": 2.0}],
        ["a", "b"],
        2,
        False,
        {},
        rows=rows,
        said=said,
    )


def after(outcome, steps: int = 5):
    last = Attempt(1, "7", ["a", "b"], 2, 0.0, 0, 1.0, steps, outcome.cause, outcome.exit_code, outcome.reason)
    last.blamed = list(outcome.blamed)
    return decide([last], Rule(restarts_without_progress=3, node_failures=2))


def test_a_broken_gpu_excludes_its_node_at_once_below_forty_frames(tmp_path):
    outcome = ended(
        tmp_path, "RuntimeError: CUDA error: uncorrectable ECC error encountered\n" + CUDA_TAIL + FRAMES, 134
    )
    assert outcome.reason.startswith("rank 1 on b: ECC; report the node: RuntimeError: CUDA error")
    assert (after(outcome).action, after(outcome).exclude) == ("requeue", ["b"])


def test_a_wrong_environment_stops_the_first_start_only_and_a_wrong_build_always(tmp_path):
    missing = ended(tmp_path, "ModuleNotFoundError: No module named 'x'")
    assert after(missing, 0).action == "fail" and after(missing, 5).action == "requeue" and not missing.blamed
    assert after(ended(tmp_path, "CUDA error: no kernel image is available"), 5).action == "fail"


def test_what_srun_says_of_memory_is_the_reason_of_a_sigkill(tmp_path):
    said = ["1: slurmstepd-b: error: Detected 1 oom_kill event in StepId=1.0."]
    assert "raise memory_per_task_gb" in ended(tmp_path, "step 5\n", 137, said).reason
    assert "was ended by SIGKILL" in ended(tmp_path, "step 5\n", 137).reason


def test_a_profile_adds_rows_which_are_asked_first(tmp_path):
    row = {"kind": "our filer", "match": "filer7 is away", "action": "stop", "advice": "call 7777"}
    profile = validated(ClusterProfile, {"tasks_per_node": 1, "failures": [row]}, "p.yaml")
    (own,) = profile.failures
    outcome = ended(
        tmp_path, "OSError: filer7 is away: Stale file handle", rows=[[own.kind, own.match, own.action, own.advice]]
    )
    assert outcome.reason.startswith("rank 1 on b: our filer; call 7777: OSError") and after(outcome).action == "fail"
    with pytest.raises(UserError, match=r"failures.*not a regular expression"):
        validated(ClusterProfile, {"tasks_per_node": 1, "failures": [{**row, "match": "("}]}, "p.yaml")
