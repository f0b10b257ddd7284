"""Commands of the launcher against real Slurm daemons: what is queued, refused and said."""

import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import slurm_cluster

from launcher.record import Record
from onediff.config.compose import load_run

GOLDEN = Path(__file__).with_name("golden")
pytestmark = pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing()))


SBATCH = """#!/bin/sh
case "$*" in *--test-only*) exec {real} "$@";; esac
echo "Welcome to the cluster: 3 nodes."
sleep "${{SLOW:-0}}"
case "$LOST:$*" in
    refused:*two.sbatch*) echo "sbatch: error: Batch job submission failed: Unable to contact slurm controller" >&2; exit 1;;
    answer:*two.sbatch*) {real} "$@" > /dev/null; echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1;;
esac
{real} "$@"
echo "Have a nice day."
"""


def test_no_job_is_lost_or_doubled_by_a_banner_a_lost_answer_or_two_submissions_at_once(launched, cluster, tmp_path):
    run, tools = launched(), tmp_path / "bin"
    tools.mkdir()
    (tools / "sbatch").write_text(SBATCH.format(real=shutil.which("sbatch")))
    (tools / "scancel").write_text(f'#!/bin/sh\n[ "$LOST" = refused ] && exit 1\nexec {shutil.which("scancel")} "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    path = {"PATH": f"{tools}:{cluster.env['PATH']}"}
    run.profile["sbatch"] = ["--hold"]

    def queue() -> list[str]:
        return sorted(cluster.sh("squeue", "-h", "--format=%i").split())

    # Two at once: one of them is refused, whichever comes second.
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda _: run.submit(env={**path, "SLOW": "2"}), range(2)))
    assert sorted(done.returncode for done in both) == [0, 2], [done.stderr for done in both]
    refused = next(done for done in both if done.returncode)
    assert "another process is submitting it" in refused.stderr or "is pending as job" in refused.stderr
    assert queue() == sorted(run.record.latest_jobs().values()) and len(queue()) == 3
    # Nor does a folder without its notes take the run to be unknown.
    (run.run / "launch" / "jobs.json").rename(tmp_path / "jobs.json")
    assert "is pending as job" in run.submit(env=path).stderr
    assert run.onediff("cancel", "run", "--now").returncode == 0 and queue() == []
    done = run.submit(env={**path, "LOST": "answer"})
    assert done.returncode == 0, done.stderr
    assert queue() == sorted(run.record.latest_jobs().values()) and len(queue()) == 3
    assert run.onediff("cancel", "run", "--now").returncode == 0 and queue() == []
    # The controller goes away in the middle of the chain, so that its beginning cannot be taken back either.
    done = run.submit(env={**path, "LOST": "refused"})
    assert done.returncode == 2 and "two may have been queued anyway" in done.stderr and len(queue()) == 1
    assert f"not cancelled: one (job {queue()[0]}), two (job unknown)" in done.stderr
    assert run.states()["one"]["state"] == "waiting" and "is pending as job" in run.submit().stderr
    assert run.onediff("cancel", "run", "--now").returncode == 0 and queue() == []
    assert "another submission started to queue phase two" in run.submit().stderr


def test_wrong_submissions_are_one_line_and_queue_nothing(launched, cluster, tmp_path):
    run = launched()
    good_profile, good_config = dict(run.profile), dict(run.config)
    (tmp_path / "file").write_text("")

    def refused(words: str, *options: str, nodes: str = "2", profile=None, config=None, env=None) -> None:
        run.profile, run.config = {**good_profile, **(profile or {})}, {**good_config, **(config or {})}
        run.write()
        base = ["submit", "run.yaml", "--run", "run", "--profile", str(run.home / "profile.yaml"), "--nodes", nodes]
        base += ["--no-weights-check"]
        done = run.onediff(*base, *options, env=env)
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        assert done.stderr.count("\n") == 1 and words in done.stderr, (words, done.stderr)
        assert "Traceback" not in done.stderr and cluster.sh("squeue", "-h") == ""

    refused("no such partition (did you mean 'low'?)", profile={"partition": "lwo"})
    refused("nodes of partition dev have 2 GPUs", profile={"gpus_per_node": 4})
    refused("cannot split a global batch of 8", nodes="3")
    refused("allows 120 minutes at most", profile={"time_limit": "3:00:00"})
    refused("cannot be written: Not a directory", "--run", str(tmp_path / "file" / "run"))
    refused("not found on PATH", env={"PATH": "/nowhere"})
    refused("unknown key 'partiton' (did you mean 'partition'?)", profile={"partiton": "dev"})
    refused("partition dev has 3 nodes", nodes="4")
    refused("no phase 'tow' (did you mean 'two'?)", "--phases", "tow")
    refused("needs phase one, which has not finished", "--phases", "two")
    refused("optimizer.lr", "optimizer.lr=abc")
    refused("there is no profile 'default'; name the cluster with --profile: ", "--profile", "default")
    refused("profile 'plian': no such file (did you mean 'plain'?)", "--profile", "plian")
    refused(
        "no such folder of shards", config={"data": {"base": "data/scenes", "sets": {"pairs": "/no", "singles": "/no"}}}
    )
    refused("such as 24:00:00", profile={"time_limit": "tomorrow"})
    refused("nodes of partition dev have 16", profile={"cpus_per_task": 9})
    refused("expected a count such as 8", nodes="two")
    refused("Invalid feature specification; the request is at the top of", profile={"constraint": "h100"})


def test_a_sweep_keeps_to_its_cap_and_ends_in_a_table(launched, cluster):
    run = launched(seconds=0.05, steps=6)
    values = "optimizer.lr=1e-3,2e-3,3e-3"
    words = ["run.yaml", values, "--profile", str(run.home / "profile.yaml"), "--nodes", "1", "--phases", "one"]
    done = run.onediff("sweep", *words, "--at-most", "2")
    assert done.returncode == 0, done.stderr
    sweep = run.home / "runs" / "tiny-sweep"
    runs = [Record(sweep / f"lr-{value}") for value in ("1e-3", "2e-3", "3e-3")]
    for record in runs:
        assert load_run(str(record.run / "config.yaml")).tracking.sweep == "tiny-sweep"
    run.wait(lambda: cluster.sh("squeue", "-h") == "", 300, "the sweep did not end")
    spans = [(attempt.started, attempt.ended) for record in runs for attempt in record.attempts("one")]
    assert len(spans) == 3 and all(record.finished("one") for record in runs), spans
    assert max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans) <= 2
    table = (sweep / "table.txt").read_text()
    assert table.startswith("run ") and all(f"lr-{value}" in table for value in ("1e-3", "2e-3", "3e-3")), table
    counted = run.home / "squeue"
    counted.write_text(f'#!/bin/sh\necho x >> {run.home}/asked\nexec {shutil.which("squeue")} "$@"\n')
    counted.chmod(0o755)
    path = {"PATH": f"{run.home}:{cluster.env['PATH']}"}
    states = json.loads(run.onediff("status", "runs/tiny-sweep", "--json", env=path).stdout)
    assert (run.home / "asked").read_text() == "x\n", "Slurm is asked once for all runs"
    assert [rows[0]["state"] for rows in states.values()] == ["finished"] * 3
    refused = run.onediff("sweep", *words[:1], "optimizer.lr=1e-4,x", *words[2:])
    assert refused.returncode == 2 and cluster.sh("squeue", "-h") == ""


def test_scripts_for_1_2_and_128_nodes_are_taken_by_slurm(cluster):
    for script in sorted(GOLDEN.glob("*.sbatch")):
        done = subprocess.run(["sbatch", "--test-only", script], env=cluster.env, capture_output=True, text=True)
        assert done.returncode == 0 and "to start at" in done.stderr, done.stderr


def test_512_nodes_can_be_submitted_and_followed(launched, cluster):
    """Held, since the nodes do not exist: what is asked of Slurm, and what status says."""
    run = launched()
    run.profile["sbatch"] = ["--hold"]
    run.profile |= {"partition": "p5", "gpus_per_node": 8, "gpu_type": "h100", "cpus_per_task": 24, "tasks_per_node": 8}
    phase = {"mix": {"pairs": 1}, "steps": 20, "global_batch": 8192, "micro_batch": 1}
    run.config["phases"] = {"one": phase}
    job = run.submitted(nodes="512")["one"]
    shown = cluster.sh("scontrol", "--oneliner", "show", "job", job)
    assert "NumNodes=512" in shown and "NumTasks=4096" in shown and "TresPerNode=gres:gpu:h100:8" in shown, shown
    assert (run.states()["one"]["state"], run.states()["one"]["why"]) == ("waiting", "JobHeldUser")
    assert run.onediff("cancel", "run", "--now").returncode == 0
    too_many = run.submit("--run", "other", nodes="1024")
    assert too_many.returncode == 2 and "partition p5 has 512 nodes" in too_many.stderr


def test_doctor_sees_the_cluster_from_its_nodes(launched, cluster, tmp_path):
    run = launched()
    run.profile["tasks_per_node"] = 1
    run.write()
    words = ["doctor", "--profile", str(run.home / "profile.yaml"), "--data", str(run.home / "data")]
    done = run.onediff(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BAD" not in done.stdout and "2: node1, node2" in done.stdout and "written by 2 of 2 nodes" in done.stdout
    assert "ms round trip" in done.stdout and "node2 → node1" in done.stdout and "differs by" in done.stdout
    assert "dev: 3 nodes, 2 GPUs and 16 CPUs per node, 120 minutes at most" in done.stdout
    for name in ("slurm-wlm 2", "preemption REQUEUE", "proctrack/linuxproc", "open between all nodes"):
        assert name in done.stdout, done.stdout
    pace = r"\d+ µs for one number, bus bandwidth [\d,]+ MB/s"
    assert re.search(rf"ok +all-reduce +2 ranks on 2 nodes \(cpu\): {pace}", done.stdout)
    assert not list(run.home.glob(".onediff-doctor-*"))
    bad = run.onediff(*words[:-1], "/nowhere")
    assert bad.returncode == 1 and "BAD  node1" in bad.stdout and "/nowhere: no shards found" in bad.stdout
    run.profile["partition"] = "lwo"
    bad = run.onediff(*words)
    assert bad.returncode == 1 and "did you mean 'low'" in bad.stdout


def test_a_controller_that_does_not_answer_is_one_line(launched, cluster):
    run = launched()
    cluster.stop_controller()
    try:
        done = run.submit()
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("onediff: error: s"), done.stderr
    finally:
        cluster.start_controller()
        cluster.wait_until(lambda: len(cluster.idle_nodes()) == 3, 300, "nodes did not register again")


def test_names_of_users_are_harmless_or_refused(launched, cluster, tmp_path):
    run = launched()
    canary = tmp_path / "canary"
    hostile = f"$(touch {canary}) `touch {canary}` ; touch {canary} ' \" \\ #"
    run.profile["environment"]["NOTE"] = hostile
    run.profile["command"] = [
        "/bin/sh",
        "-c",
        'printf %s "$NOTE" > "$0/note"; exec "$@"',
        str(tmp_path),
        *run.profile["command"],
    ]
    run.home = tmp_path / "a home (with; spaces & more)"
    run.home.mkdir()
    run.run = run.home / "run"
    run.record = type(run.record)(run.run)
    run.submitted("--phases", "one", "--comment", "for you & me; touch it", nodes="1")
    run.wait_end("one")
    assert run.record.finished("one"), run.story()
    assert (tmp_path / "note").read_text() == hostile
    for option, name in (
        ("--comment", f"$(touch {canary})"),
        ("--comment", "two\n#SBATCH --nodes=9"),
        ("--run", str(tmp_path / f"$(touch {canary.name})")),
        ("--run", str(tmp_path / "line\nbreak")),
        ("--run", str(tmp_path / 'qu"ote')),
        ("--run", str(tmp_path / "%j")),
    ):
        done = run.submit(option, name)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, (name, done.stdout, done.stderr)
    for name in ("a b", "$(touch x)", "x'y", "line\nbreak", "-rf", ""):
        done = run.submit(f"name={name!r}")
        assert done.returncode == 2 and "plain name" in done.stderr, (name, done.stderr)
    assert not canary.exists() and not list(Path(tmp_path).rglob("x"))
    assert cluster.sh("squeue", "-h") == ""
