"""Known failures, recognised by their messages: what each means, what to do, and a hint for the user.

The messages come from public bug reports. A profile adds rows with its key `failures`, which take precedence. The last
matching line of a log decides; if several rows match it, the first one counts.

Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

RESTART, LEAVE_OUT, STOP, STOP_AT_START = "restart", "leave out", "stop", "stop at start"
"""Restart; restart without the node; end the phase; end the phase unless it has completed a step before."""


class Failure(NamedTuple):
    """One row."""

    kind: str
    match: str
    """Regular expression, searched in each line of the log of the rank that failed first and of srun's output."""
    action: str
    advice: str = ""
    """What a user can do about it."""


FAILURES = (
    # GPUs that need an administrator, or at least a reboot.
    Failure("ECC", r"uncorrectable ECC|ECC_UNCORRECTABLE|cudaErrorECCUncorrectable", LEAVE_OUT, "report the node"),
    Failure(
        "GPU lost",
        r"GPU is lost|fallen off the bus|Unable to determine the device handle",
        LEAVE_OUT,
        "report the node",
    ),
    Failure(
        "GPU lost", r"Xid \(PCI:[0-9a-fA-F:.]+\): (48|62|64|74|79|94|95|119|120|140)\b", LEAVE_OUT, "report the node"
    ),
    Failure(
        "NVLink", r"[Ii]nvalid access of peer GPU memory over nvlink|uncorrectable NVLink", LEAVE_OUT, "report the node"
    ),
    Failure("GPU driver", r"CUDA error: (system not yet initialized|unknown error)|CUDA unknown error", LEAVE_OUT),
    Failure("GPU driver", r"No CUDA GPUs are available|Found no NVIDIA driver|driver initialization failed", LEAVE_OUT),
    Failure("GPU driver", r"NVIDIA driver on your system is too old|forward compatibility was attempted", LEAVE_OUT),
    Failure("GPU busy", r"CUDA-capable device\(s\) is/are busy|devices are busy or unavailable", LEAVE_OUT),
    # GPU programs.
    Failure(
        "CUDA assertion",
        r"device-side assert triggered|Assertion `.*` failed\.$",
        STOP_AT_START,
        "an index is out of range; CUDA_LAUNCH_BLOCKING=1 shows where",
    ),
    Failure(
        "CUDA build",
        r"no kernel image is available|PTX was compiled with an unsupported",
        STOP,
        "install torch for these GPUs",
    ),
    Failure("CUDA memory access", r"illegal memory access|misaligned address|cudaErrorIllegalAddress", RESTART),
    Failure("CUDA launch", r"unspecified launch failure|launch timed out|CUBLAS_STATUS_EXECUTION_FAILED", RESTART),
    Failure("cuDNN", r"CUDNN_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR)", RESTART),
    # Memory.
    Failure(
        "out of memory",
        r"OutOfMemoryError|CUDA out of memory|CUBLAS_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)|CUDA error: out of memory",
        RESTART,
        "lower micro_batch or use more nodes",
    ),
    Failure(
        "out of memory",
        r"oom[-_ ]kill|Out Of Memory|Out of memory: Killed|exceeded memory limit|is killed by signal: Killed",
        RESTART,
        "raise memory_per_task_gb, or lower data.workers or data.prefetch",
    ),
    Failure(
        "out of memory", r"Cannot allocate memory|^MemoryError|std::bad_alloc", RESTART, "raise memory_per_task_gb"
    ),
    Failure(
        "shared memory",
        r"killed by signal: Bus error|out of shared memory|Unexpected bus error encountered in worker",
        RESTART,
        "raise /dev/shm, or lower data.workers",
    ),
    # NCCL.
    Failure(
        "NCCL",
        r"Duplicate GPU detected|ncclInvalidUsage",
        STOP,
        "two ranks share a GPU; look at tasks_per_node and `srun`",
    ),
    Failure("NCCL", r"no socket interface found", STOP_AT_START, "name the network in the profile's `interface`"),
    Failure("NCCL version", r"Mismatched NCCL version detected", STOP_AT_START, "nodes have different libraries"),
    Failure(
        "InfiniBand", r"NET/IBP? ?: ?Got completion from peer|ibv_\w+ failed|Got async event : port error", RESTART
    ),
    Failure("NCCL", r"ncclSystemError|ncclInternalError|ncclUnhandledCudaError|unhandled (system|cuda) error", RESTART),
    # Storage.
    Failure("storage", r"Disk quota exceeded", STOP, "free some of the quota"),
    Failure("storage", r"No space left on device", RESTART, "free some space"),
    Failure("storage", r"\[Errno 107\]|Read-only file system", LEAVE_OUT, "the node has lost a mount"),
    Failure("storage", r"Stale file handle|Input/output error|\[Errno 108\]|Remote I/O error", RESTART),
    Failure("open files", r"Too many open files", STOP_AT_START, "put `ulimit -n 65536` into the profile's `setup`"),
    Failure("permissions", r"PermissionError|Permission denied", STOP_AT_START),
    # Python and its environment.
    Failure(
        "Python",
        r"^(ModuleNotFoundError|ImportError)|cannot open shared object file|undefined symbol|version `GLIBC\S* not found",
        STOP_AT_START,
        "look at `python`, `modules` and `setup` in the profile",
    ),
    Failure("Python", r"^(SyntaxError|IndentationError|NameError|AttributeError|TypeError)\b", STOP_AT_START),
    Failure("data worker", r"DataLoader worker \(pid.*\) (exited unexpectedly|is killed)|BrokenProcessPool", RESTART),
    # The end of a peer or of the job is not a cause.
    Failure("time limit", r"DUE TO TIME LIMIT", RESTART),
)


class SeenFailure(NamedTuple):
    """A known failure and the line that matched it."""

    failure: Failure
    line: str

    def words(self) -> str:
        """`ECC: RuntimeError: CUDA error: … (report the node)`."""
        advice = f"; {self.failure.advice}" if self.failure.advice else ""
        return f"{self.failure.kind}{advice}: {self.line}"


def known(lines: Sequence[str], own: Sequence[Sequence[str]] = ()) -> SeenFailure | None:
    """The failure in the last matching line, by the profile's rows `own` and those above; None if no line matches."""
    rows = [*(Failure(*row) for row in own), *FAILURES]
    for line in reversed(lines):
        for row in rows:
            if re.search(row.match, line):
                return SeenFailure(row, line.strip()[:300])
    return None
