"""All measurements that need a GPU, in one command and within eight minutes; with --dry-run, small sizes on the CPU.

  make bench-gpu                     on a machine with a GPU: results/<gpu>_<date>.json and .md
  make bench-gpu ARGS=--dry-run      on any machine: runs all parts, with meaningless figures

It builds and downloads nothing. Of this project's dependencies it needs only torch, transformers (which brings numpy and
safetensors), pydantic and PyYAML; DeepSpeed and flash-attn are measured if they are installed. Each part runs in its own
process with a share of the time. A part that crashes or takes too long is reported as not measured, with the reason, and
the others continue. Weights and images are random, at real sizes: CLIP ViT-L/14 at 336 pixels with Llamas of 0.1, 1 and 7
billion parameters.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

RESULTS = HERE / "results"
NEEDED = {"torch": "torch", "transformers": "transformers", "pydantic": "pydantic", "PyYAML": "yaml"}
"""Required packages, and the module of each."""


@dataclass(frozen=True)
class Part:
    """One part of the report."""

    title: str
    module: str
    function: str
    share: float
    """share of the total time"""
    columns: tuple[str, ...]


PARTS = {
    "r": Part(
        "The training itself: `onediff train`, packed rows under ZeRO-3, rank 0's loader at work",
        "real",
        "trained",
        0.3,
        (
            "model",
            "gpus",
            "T",
            "deterministic",
            "pairs_per_second",
            "tokens_per_second",
            "tflops",
            "mfu",
            "peak_gib",
            "data_wait_share",
        ),
    ),
    "a": Part(
        "Attention by backend, TFLOP/s (forward and backward: both)",
        "attention",
        "speed",
        0.15,
        ("case", "backend", "forward_tflops", "both_tflops", "forward_ms", "both_ms"),
    ),
    "e": Part(
        "Agreement with the fp64 reference, relative error",
        "attention",
        "agreement",
        0.05,
        ("case", "backend", "dtype", "error", "gradient_error", "limit", "agrees"),
    ),
    "b": Part(
        "Whole training steps (MFU: of the bf16 peak, frozen parts without a backward pass of their own, no recomputation)",
        "steps",
        "whole_steps",
        0.25,
        (
            "model",
            "phase",
            "engine",
            "pairs_per_second",
            "tokens_per_second",
            "tflops",
            "mfu",
            "peak_gib",
            "host_share",
        ),
    ),
    "c": Part(
        "The same pairs in the LLaVA way, both without DeepSpeed",
        "steps",
        "beside_llava",
        0.12,
        ("model", "pairs_per_second", "llava_pairs_per_second", "ratio", "peak_gib", "llava_peak_gib"),
    ),
    "d": Part(
        "Captions, 48 tokens each",
        "generation",
        "captions",
        0.13,
        ("model", "batch", "way", "captions_per_second", "seconds", "peak_gib", "tokens_as_without_graphs"),
    ),
}
"""In the order in which they run, the most informative first."""


def run_part(name: str, device: str, dry: bool, seconds: float, out: Path) -> None:
    """Measures one part in this process; writes records to `out` as they arrive, so that a killed part leaves some."""
    import torch
    from gpu_parts.measure import Setting

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device == "cuda" else "cpu")
    setting = Setting(torch.device(device), dry, time.monotonic() + seconds)
    part = PARTS[name]
    records: Callable[[Any], Iterator[dict[str, Any]]] = getattr(
        importlib.import_module(f"gpu_parts.{part.module}"), part.function
    )
    with out.open("a") as file:
        for record in records(setting):
            file.write(json.dumps(record) + "\n")
            file.flush()
            print("  " + ", ".join(f"{key} {_shown(value)}" for key, value in record.items()), flush=True)


def measured(name: str, device: str, dry: bool, seconds: float) -> list[dict[str, Any]]:
    """The records of one part, from a process that is killed when its time is up."""
    words = [sys.executable, __file__, "--only", name, "--device", device, "--seconds", str(seconds)]
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder) / "records", Path(folder) / "errors"
        with errors.open("w") as stream:
            # Half a minute more than its share: its last case may have begun just in time.
            try:
                threads = {"OMP_NUM_THREADS": "1"} if dry else {}
                code = subprocess.run(
                    [*words, "--out", str(out), *(["--dry-run"] if dry else [])],
                    stderr=stream,
                    env={**os.environ, **threads},
                    timeout=seconds + 30,
                    check=False,
                ).returncode
                why = f"the process ended with code {code}"
            except subprocess.TimeoutExpired:
                code, why = -1, f"stopped after {seconds + 30:.0f} s"
        records = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        if code != 0:
            last = [line.strip() for line in errors.read_text(errors="replace").splitlines() if line.strip()][-1:]
            records.append({"case": "the rest of this part", "not_measured": f"{why}; {' '.join(last)[:300]}"})
    return records


def environment(device: str) -> dict[str, Any]:
    """The hardware and software that was measured."""
    import torch

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    for package in ("triton", "transformers", "deepspeed", "flash-attn", "flash-attn-4", "flash-attn-3", "apex"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "gpu_gib": round(properties.total_memory / 2**30, 1)}
    else:
        found |= {"gpu": None, "cpu": platform.machine()}
    found["commit"] = subprocess.run(
        ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return found


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    about = ", ".join(f"{key} {value}" for key, value in report["environment"].items() if value)
    lines = [f"# {report['environment']['gpu'] or 'Dry run on the CPU'}, {report['date']}", "", about, ""]
    if report["dry_run"]:
        lines += ["Small sizes: this only shows that all parts run.", ""]
    for name, part in PARTS.items():
        if name not in report["parts"]:
            continue
        records = report["parts"][name]
        lines += [f"## ({name}) {part.title}", ""]
        lines += ["| " + " | ".join(part.columns) + " |", "|" + " --- |" * len(part.columns)]
        missing = []
        for record in records:
            if "not_measured" in record:
                named = ", ".join(str(record[key]) for key in part.columns if key in record)
                missing.append(f"- not measured: {named}: {record['not_measured']}")
            else:
                lines.append("| " + " | ".join(_shown(record.get(column)) for column in part.columns) + " |")
        lines += ["", *missing, *([""] if missing else [])]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else str(round(value) if isinstance(value, float) else value)
    )


def main() -> int:
    """The whole report, or one part of it."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--dry-run] [--minutes M] [--parts LETTERS] [--json FILE]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--dry-run", action="store_true", help="small sizes on the CPU")
    parser.add_argument("--minutes", type=float, default=8.0, help="total time (default: 8)")
    parser.add_argument("--parts", default="".join(PARTS), help="which of rabecd (default: all)")
    parser.add_argument("--json", type=Path, help="write the report here, instead of under benchmarks/results/")
    parser.add_argument("--only", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--device", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        run_part(options.only, options.device, options.dry_run, options.seconds, options.out)
        return 0
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown or not options.parts:
        parser.error(f"--parts: no part {''.join(unknown[:1])!r}; give some of the letters {''.join(sorted(PARTS))}")
    missing = next((name for name, module in NEEDED.items() if importlib.util.find_spec(module) is None), None)
    if missing:
        print(f"{missing} is not installed for {sys.executable}; needed are {', '.join(NEEDED)}", file=sys.stderr)
        return 2
    import torch

    if not options.dry_run and not torch.cuda.is_available():
        print("no CUDA device here; `make bench-gpu ARGS=--dry-run` runs small sizes on the CPU", file=sys.stderr)
        return 2
    device = "cpu" if options.dry_run else "cuda"
    began = time.monotonic()
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "dry_run": options.dry_run,
        "environment": environment(device),
        "parts": {},
    }
    wanted = [name for name in PARTS if name in options.parts]
    # Time to start a process, and what a part may take beyond its share, come off first.
    spare = 0 if options.dry_run else 15 * len(wanted)
    for number, name in enumerate(wanted):
        left = 60 * options.minutes - spare - (time.monotonic() - began)
        shares = sum(PARTS[other].share for other in wanted[number:])
        print(f"({name}) {PARTS[name].title}", flush=True)
        report["parts"][name] = measured(name, device, options.dry_run, max(10.0, left * PARTS[name].share / shares))
    report["minutes"] = (time.monotonic() - began) / 60
    card = (report["environment"]["gpu"] or "dry-run").lower().replace("nvidia ", "").replace(" ", "-")
    target = options.json or RESULTS / f"{card}_{report['date']}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=1) + "\n")
    target.with_suffix(".md").write_text(markdown(report) + "\n")
    print(f"{target} and {target.with_suffix('.md').name}, after {report['minutes']:.1f} minutes")
    return 0 if all(any("not_measured" not in record for record in part) for part in report["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
