"""Random faults on real Slurm daemons, one run each: losses, samples, blame and words are checked, and a table is kept.

    make fault-campaign
    python tests/launcher/fault_campaign.py --faults 100 --seconds 3600

The ranks are those of `tests/support/standin_trainer.py`, whose state depends on every step done before. What has been run
stands in docs/fault-campaign.jsonl and is not run again; the table is docs/fault-campaign.md. Needs root and the packages of
tests/debian-packages.txt.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).parents[2]
sys.path[:0] = [str(HOUSE), str(HOUSE / "tests" / "support")]

import slurm_cluster  # noqa: E402
from campaign_faults import EVERY, FAULTS, STEPS, Case, Place, disk_at, kind_of  # noqa: E402
from mlflow_server import MlflowServer  # noqa: E402

RECORD, TABLE = HOUSE / "docs" / "fault-campaign.jsonl", HOUSE / "docs" / "fault-campaign.md"


def restored(cluster: slurm_cluster.SlurmCluster) -> None:
    """Makes every node fit again, and leaves no job behind."""
    cluster.sh("scancel", "--user=root", check=False)
    for name in cluster.names:
        if name in cluster.inits and name == "node2" and name not in cluster.idle_nodes():
            cluster.crash(name)
        if name not in cluster.inits:
            cluster.start_node(name)
    cluster.on("node1", "rm", "-f", "/dev/shm/full")
    cluster.wait_until(lambda: not cluster.sh("squeue", "-h"), 300, "jobs are left")
    cluster.wait_until(lambda: len(cluster.idle_nodes()) == cluster.count, 300, "a node did not come back")


def table(rows: list[dict[str, Any]], wanted: int) -> str:
    """The page of the campaign: one row a kind of fault."""
    lines = [
        "# Fault campaign",
        "",
        f"`make fault-campaign`: {len(rows)} of {wanted} random faults so far. Each fault hits a run of {STEPS} steps with",
        f"a checkpoint every {EVERY}, four ranks on two of three nodes of real Slurm daemons, and one spare node. A run is",
        "right if it has the losses and reads the samples of an undisturbed run at every step, if each restart repeats",
        "at most one checkpoint interval (and nothing after a warning), and if `explain` names the fault. If MLflow was",
        "down, its server must have every step exactly once in the end. Times are in seconds from the failure to the",
        "first new step, on a busy two-core machine.",
        "",
        "| fault | runs | right | left the job | steps done twice, at most | recovery, median | longest |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind in sorted(FAULTS):
        of_kind = [row for row in rows if row["fault"] == kind]
        times = sorted(seconds for row in of_kind for seconds in row["recovery"])
        middle, longest = (f"{times[len(times) // 2]:.0f}", f"{times[-1]:.0f}") if times else ("", "")
        right, left = sum(not row["wrong"] for row in of_kind), sum(row["left the job"] > 0 for row in of_kind)
        twice = max((row["steps twice"] for row in of_kind), default=0)
        lines.append(f"| {kind} | {len(of_kind)} | {right} | {left} | {twice} | {middle} | {longest} |")
    wrong = [f"- {row['number']}, {row['fault']}: {'; '.join(row['wrong'])[:200]}" for row in rows if row["wrong"]]
    return "\n".join([*lines, *(["", "What was wrong:", "", *wrong] if wrong else []), ""])


@contextmanager
def campaign() -> Iterator[Place]:
    """Daemons, a disk and a server that is not started yet, for all runs."""
    with tempfile.TemporaryDirectory(prefix="fault-campaign-") as name, disk_at(Path(name) / "disk") as disk:
        (Path(name) / "mlflow").mkdir()
        with slurm_cluster.SlurmCluster(Path(name) / "slurm") as cluster:
            mlflow = MlflowServer(Path(name) / "mlflow", f"{cluster.net}.254")
            try:
                yield Place(cluster, disk, mlflow)
            finally:
                mlflow.stop()


def row_of(case: Case) -> dict[str, Any]:
    """Run one case; a run that does not come to an end is a row, too."""
    try:
        return case.run()
    except AssertionError as error:
        row = {"fault": case.kind, "step": case.step, "attempts": 0, "left the job": 0, "steps twice": 0}
        return row | {"recovery": [], "explained": "", "wrong": [str(error)[-600:]]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--faults", type=int, default=100, metavar="N", help="faults of the whole campaign (default: 100)"
    )
    parser.add_argument("--seconds", type=float, default=3600, help="begin none after this time (default: 3600)")
    args = parser.parse_args()
    if why := slurm_cluster.missing():
        print(why)
        return 2
    rows = [json.loads(line) for line in RECORD.read_text().splitlines()] if RECORD.exists() else []
    done, end = {row["number"] for row in rows}, time.monotonic() + args.seconds
    with campaign() as place:
        for number in range(1, args.faults + 1):
            if number in done or time.monotonic() > end:
                continue
            row = {"number": number, **row_of(Case(number, kind_of(number), place))}
            rows = sorted([*rows, row], key=lambda one: one["number"])
            RECORD.write_text("".join(json.dumps(one) + "\n" for one in rows))
            TABLE.write_text(table(rows, args.faults))
            print(json.dumps(row), flush=True)
            restored(place.cluster)
    return int(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
