"""The origin of a run: code, packages, machine and job."""

from __future__ import annotations

import getpass
import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from onediff.tracking.scrub import scrubbed, scrubbed_words

PACKAGES = [
    *("onediff", "torch", "deepspeed", "megatron-core", "transformers", "flash-attn", "apex"),
    *("mlflow", "fsspec", "numpy", "pillow", "pycocoevalcap"),
]
GIT_SECONDS = 10


def start_tags() -> dict[str, str]:
    """Tags of one start of a run: commit, versions, host, command line, Slurm job. No secrets, nothing empty."""
    job = os.environ
    tags = {
        "git.commit": git("rev-parse", "HEAD"),
        "git.branch": git("rev-parse", "--abbrev-ref", "HEAD"),
        "git.dirty": "yes" if git("status", "--porcelain", "--untracked-files=no") else "no",
        "mlflow.user": user(),
        "mlflow.source.name": " ".join(["onediff", *scrubbed_words(sys.argv[1:2])]),
        "mlflow.source.type": "JOB" if "SLURM_JOB_ID" in job else "LOCAL",
        "mlflow.source.git.commit": git("rev-parse", "HEAD"),
        "command": " ".join(scrubbed_words(sys.argv)),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "slurm.job_id": job.get("SLURM_JOB_ID", ""),
        "slurm.array": "_".join(filter(None, (job.get("SLURM_ARRAY_JOB_ID"), job.get("SLURM_ARRAY_TASK_ID")))),
        "slurm.partition": job.get("SLURM_JOB_PARTITION", ""),
        "slurm.nodes": job.get("SLURM_JOB_NODELIST", ""),
        "world_size": job.get("WORLD_SIZE", ""),
        **{f"package.{name}": version for name, version in versions().items()},
    }
    if not tags["git.commit"]:
        del tags["git.dirty"]
    return {name: scrubbed(text) for name, text in tags.items() if text}


def user() -> str:
    """The user who started this process; empty for a user id without a name, as in containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def versions() -> dict[str, str]:
    """Version of each installed package that affects what a run computes."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def uncommitted(most: int) -> str:
    """The difference between the commit and the running code, at most `most` bytes, secrets masked."""
    text = git("diff", "HEAD")
    cut = text.encode()[:most].decode(errors="ignore")
    return scrubbed(cut) + (f"\n# cut at {most} bytes\n" if len(cut) < len(text) else "")


def git(*words: str) -> str:
    """What git reports about the checkout of this package; empty for an installed wheel."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, timeout=GIT_SECONDS, text=True, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
