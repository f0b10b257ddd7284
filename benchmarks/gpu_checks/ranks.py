"""One rank per GPU: checks nccl's sums and measures their speed."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from gpu_parts.measure import Setting

from gpu_checks.outcome import Wrong
from launcher.local import run_local


def check(setting: Setting) -> dict[str, Any]:
    """With one GPU, the sum is over one rank, which still starts nccl."""
    gpus = setting.device.type == "cuda"
    ranks = torch.cuda.device_count() if gpus else 2
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "note"
        words = [sys.executable, "-m", "onediff.parallel.all_reduce", str(note), *(["--gpus"] if gpus else [])]
        code = run_local(words, ranks, log_dir=Path(folder))
        if code or not note.is_file():
            log = (Path(folder) / "local.rank0.log").read_text(errors="replace").strip().splitlines()
            raise Wrong(f"{ranks} ranks ended with code {code}: {' | '.join(log[-2:])}")
        return json.loads(note.read_text())
