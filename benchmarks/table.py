"""Makes the tables of CPU measurements in docs/performance.md from the files in `results/`.

python benchmarks/table.py            # print them
python benchmarks/table.py --write    # also put them into the page
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
Figures = dict[str, Any]

LOADERS = {
    "limit": "decoding alone, fast pixels",
    "onediff": "OneDiff, fast pixels",
    "limit_exact": "decoding alone, exact pixels",
    "onediff_exact": "OneDiff, exact pixels",
    "webdataset": "webdataset, Pillow and the Hugging Face processor",
    "energon": "megatron-energon, the same",
    "streaming": "mosaicml-streaming, the same",
    "litdata": "LitData, the same",
    "grain": "Grain, the same",
    "torchvision_fast": "torch's DataLoader, simplejpeg and torchvision's transforms",
    "webdataset_fast": "torch's DataLoader over webdataset, OneDiff's decoder",
    "spdl_fast": "SPDL, OneDiff's decoder",
    "litdata_fast": "LitData, OneDiff's decoder",
    "grain_fast": "Grain, OneDiff's decoder",
}


def results(name: str) -> Figures:
    found: Figures = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def measured_on(machine: Figures) -> str:
    """Commit, processor and load of a measurement."""
    processor = machine["processor"].replace("(R)", "").removesuffix(" Processor")
    load = f", load {machine['load']:.0f}" if "load" in machine else ""
    return f"{machine['commit']}, {processor}{load}"


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def resuming(of: Figures) -> str:
    at = {place: row for place, row in of["resume"].items() if place.endswith("%")}
    ours, theirs = ([row[side] for row in at.values()] for side in ("onediff", "webdataset"))
    return (
        f"first batch after {min(ours):.3f} to {max(ours):.3f} s, webdataset's after "
        f"{', '.join(f'{seconds:.1f}' for seconds in theirs)} s"
    )


def lanes(of: Figures) -> str:
    times = {int(key.split("_")[3]): value for key, value in of.items() if key.startswith("microseconds_a_sample")}
    return ", ".join(f"{value:.0f}" for value in times.values()) + " µs of processor time per sample of 16 kB"


def packing(of: Figures) -> str:
    seconds, real = of["seconds"], of["real_share"]
    faster = median(seconds["padded"]) / median(seconds["packed"])
    padded, full = percent(real["padded"]), percent(of["full_size_real_share"], 2)
    return f"{faster:.2f} times as fast per real token; {padded} of padded positions are real, {full} at full size"


def delta(of: Figures, other: str) -> str:
    peaks, seconds = of["peak_bytes"], of["seconds"]
    time = median(seconds["ours"]) / median(seconds[other])
    return f"{percent(peaks['ours'] / peaks[other])} of its peak memory, {time:.2f} of its time"


def writing(of: Figures) -> str:
    share = {row["way"]: row["of_limit"] for row in of["rows"]}
    two, one = (percent(share[f"onediff, {number}"]) for number in ("2 processes", "1 process"))
    return f"{two} of its rate with two processes, {one} with one"


def answers(of: Figures) -> str:
    seconds = of["seconds"]
    status, bare = seconds["onediff launch status"], seconds["python -c pass"]
    data, imports = seconds["onediff launch data --dry-run"], seconds["import yaml, pydantic"]
    told = f"`launch status` {status:.2f} s against {bare:.2f}, `launch data` {data:.2f} s against {imports:.2f}"
    return f"processor time: {told}"


def scoring(of: Figures) -> str:
    last = of["rounds"][-1]
    ours, theirs = last["onediff"], last["pycocoevalcap"]
    python, java = (f"{ours[key]:,.0f} MB against {theirs[key]:,.0f}" for key in ("python_mb", "java_mb"))
    return f"{median(of['ratios']['seconds']):.2f} of its time; Python {python}, Java {java}"


def generation(of: Figures) -> str:
    told = [f"{one['ratio']:.2f} ({min(one['ratios']):.2f} to {max(one['ratios']):.2f})" for one in of["results"]]
    return f"{told[0]} times as fast on the demo's shape, {told[1]} with a language model of 49 million parameters"


def starting(of: Figures) -> str:
    seconds = of["seconds"]
    imports, torch, built = (seconds[stage] for stage in ("onediff", "torch", "engine"))
    return f"processor time: {imports:.1f} s of imports against {torch:.1f}, {built:.1f} s until the engine is built"


def engine(of: Figures) -> str:
    return f"{of['bare torch']['ratio']:.2f} and {of['DeepSpeed, ZeRO 3']['ratio']:.2f} of their processor time"


ROWS = (
    ("loader", "webdataset, resuming at 1, 50 and 99 % of 100,000 samples", resuming),
    ("lanes_read", "16, 64, 256, 1,024 and 4,096 lanes of one rank, each in its own shard", lanes),
    ("packing", "the same samples padded in micro-batches of 16, phase two", packing),
    ("delta_attention", "copied keys, all scores in memory", lambda of: delta(of, "eager")),
    ("delta_attention", "copied keys, torch's SDPA", lambda of: delta(of, "copied")),
    ("engine", "bare torch (ZeRO-0) and DeepSpeed's minimal loop (ZeRO-3), a step of the demo's model", engine),
    ("rank_start", "importing torch alone, for a rank of the demo under ZeRO-3", starting),
    ("shard_writing", "`tar` on the same files", writing),
    ("answers", "starting Python, and importing pydantic and PyYAML", answers),
    ("score", "pycocoevalcap called directly, 10,000 pairs", scoring),
    ("generate", "Hugging Face `generate`, batch 16, one thread", generation),
)
SCRIPTS = {"lanes_read": "lanes.py --read"}


def figures() -> str:
    """One row per comparison."""
    lines = ["| script | compared with | result | measured on |", "| --- | --- | --- | --- |"]
    for name, against, told in ROWS:
        found = results(name)
        script = SCRIPTS.get(name, f"{name}.py")
        lines.append(f"| `benchmarks/{script}` | {against} | {told(found)} | {measured_on(found['machine'])} |")
    return "\n".join(lines)


def loaders() -> str:
    """One row per loader."""
    lines = [
        "| loader | pairs per processor second | relative to decoding alone | peak memory |",
        "| --- | ---: | ---: | ---: |",
    ]
    found = results("loader")
    for way, words in LOADERS.items():
        if row := found["ways"].get(way):
            rate, share, peak = row["per_cpu_second"], row["of_limit"], row["peak_MB"]
            lines.append(f"| {words} | {rate:.0f} | {share:.2f} | {peak:.0f} MB |")
    turns = f"Medians of {found['turns']} turns over {found['pairs']} pairs, {measured_on(found['machine'])}."
    return "\n".join([*lines, "", turns])


TABLES = {"figures": figures, "loaders": loaders}


def written(page: str) -> str:
    """The page with the current tables."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: benchmarks/table.py -->\n", f"<!-- end of {name} -->"
        assert begin in page and end in page, name
        page = re.sub(f"{re.escape(begin)}.*?{end}", lambda _: f"{begin}{table()}\n{end}", page, flags=re.DOTALL)  # noqa: B023
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    args = parser.parse_args()
    for table in TABLES.values():
        print(f"{table()}\n")
    if args.write:
        PAGE.write_text(written(PAGE.read_text()))


if __name__ == "__main__":
    main()
