"""The rendered scripts: golden files that a person can read, quoting, shellcheck."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launch_runs import write_data

from launcher.plan import make_plan, node_range, phase_script, pyxis_options
from launcher.profile import ClusterProfile, load_profile
from launcher.render import Script, directive, environment_lines, job_name, rendered, resource_directives
from onediff.config.compose import load_run
from onediff.errors import UserError

GOLDEN = Path(__file__).with_name("golden")
CASES = {"1-node": ("plain", "1"), "2-nodes": ("infiniband", "2"), "128-nodes": ("efa", "96-128")}


def script(profile: ClusterProfile, nodes: str, comment: str | None = None, run: str = "/home/me/runs/demo") -> str:
    least, most = node_range(nodes)
    batch = f"phases.one.global_batch={most * profile.tasks * 2}"
    config = load_run("demo.yaml", [batch, "phases.one.micro_batch=2"])
    profile = profile.model_copy(update={"python": "/opt/onediff/bin/python"})
    return rendered(
        phase_script(make_plan(config, Path(run), profile, (least, most), ["one"]), profile, "one", comment)
    )


@pytest.mark.parametrize("case", CASES)
def test_golden_scripts(case):
    profile, nodes = CASES[case]
    text = script(load_profile(profile), nodes)
    golden = GOLDEN / f"{case}.sbatch"
    if os.environ.get("ONEDIFF_WRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text(), "meant? ONEDIFF_WRITE_GOLDEN=1 pytest -k golden rewrites it"


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_passes(tmp_path):
    files = []
    for name in ("plain", "infiniband", "efa"):
        for nodes in ("1", "2", "128"):
            files.append(tmp_path / f"{name}-{nodes}.sbatch")
            files[-1].write_text(script(load_profile(name), nodes, "it is a comment"))
    hostile = ClusterProfile(
        gpus_per_node=8, modules=["a b", "$(touch x)", "c'd"], environment={"A": "`x` $HOME 'q' \"d\" \\"}
    )
    (tmp_path / "hostile.sbatch").write_text(script(hostile, "2"))
    # It only remarks that nothing expands in single quotes, which is the purpose.
    for options in (map(str, files), ["--severity=warning", str(tmp_path / "hostile.sbatch")]):
        done = subprocess.run(["shellcheck", "--shell=bash", *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_values_of_users_reach_the_shell_as_they_are(tmp_path):
    nasty = "$(touch canary) `touch canary` 'x' \"y\" \\ ; touch canary # é"
    made = Script("t", [], [f"export NOTE={shlex.quote(nasty)}"], "work", ["printf", "%s|", nasty, "a b", "'"])
    (tmp_path / "s.sh").write_text(rendered(made).replace("exec printf", 'printf "%s|" "$NOTE"; exec printf'))
    done = subprocess.run(["bash", str(tmp_path / "s.sh")], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"{nasty}|{nasty}|a b|'|" and not (tmp_path / "canary").exists()


def test_setup_lines_run_as_they_are_before_the_variables(tmp_path):
    profile = ClusterProfile(
        tasks_per_node=1, setup=['echo "$UNSET_HERE" > seen', "ulimit -n 64"], environment={"A": "b"}
    )
    lines = "\n".join(["set -euo pipefail", *environment_lines(profile, None), "ulimit -n; echo $A"])
    done = subprocess.run(["bash", "-c", lines], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["64", "b"] and (tmp_path / "seen").read_text() == "\n", done.stderr
    with pytest.raises(UserError, match=r"setup .*: must be one line"):
        environment_lines(ClusterProfile(tasks_per_node=1, setup=["a\nb"]), None)


def test_a_marker_in_a_value_stays_what_it_is():
    text = rendered(Script("t", ["--comment=@COMMAND@"], [], "w", ["true"]))
    assert "#SBATCH --comment=@COMMAND@" in text


def test_directives_quote_spaces_and_refuse_what_slurm_could_misread():
    assert directive("comment", "for you & me") == '--comment="for you & me"'
    assert directive("nodes", 8) == "--nodes=8"
    for text in ("a\nb", 'a"b', "a'b", "a\\b", "$(x)", "`x`", "a\x00b", "a\x1bb"):
        with pytest.raises(UserError, match="is not allowed here"):
            directive("comment", text)


def test_own_options_of_sbatch_may_have_spaces_and_doctor_asks_srun_for_those_that_it_knows():
    from types import SimpleNamespace

    from launcher.commands.doctor import short_job

    own = ["--comment=two words", "--exclude node3", '--job-name="a b"', "--reservation=spring", "--array=1-4"]
    profile = ClusterProfile(tasks_per_node=1, time_limit="1-0", sbatch=own)
    lines = resource_directives(profile, "2", 1, 0)
    assert lines[-5:] == ['--comment="two words"', "--exclude node3", '--job-name="a b"', *own[3:]]
    words = short_job(profile, SimpleNamespace(nodes=2), 1)
    assert words[-5:] == ["--comment=two words", "--exclude", "node3", "--job-name=a b", "--reservation=spring"]
    assert "--time=5" in words


def test_pyxis_takes_the_profiles_variables_before_the_images_own():
    container, environment = {"image": "x.sqsh"}, {"NCCL_DEBUG": "INFO"}
    profile = ClusterProfile(tasks_per_node=1, container=container, environment=environment, scratch="/t")
    assert pyxis_options(profile, Path("/runs/x"))[-1] == "--container-env=NCCL_DEBUG,TMPDIR"
    assert len(pyxis_options(ClusterProfile(tasks_per_node=1, container=container), Path("/r"))) == 2


@pytest.mark.parametrize("text", ["0", "4-2", "a", "-1", "1-", ""])
def test_node_counts(text):
    with pytest.raises(UserError, match="expected a count"):
        node_range(text)
    assert node_range("4-8") == (4, 8) and node_range("3") == (3, 3)


def test_the_dry_run_writes_nothing(tmp_path):
    write_data(tmp_path / "data" / "scenes" / "singles")
    write_data(tmp_path / "data" / "scenes" / "pairs")
    before = sorted(tmp_path.rglob("*.sbatch"))
    words = ["launch", "submit", "demo.yaml", "--profile", "plain", "--dry-run", "--phases", "warm-up"]
    overrides = ["phases.warm-up.micro_batch=1"]
    done = subprocess.run(
        [sys.executable, "-m", "onediff", *words, *overrides], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --job-name=onediff-demo-warm-up" in done.stdout
    assert not (tmp_path / "runs").exists() and sorted(tmp_path.rglob("*.sbatch")) == before


def test_the_dry_run_on_this_machine_prints_the_commands_of_its_phases(tmp_path):
    write_data(tmp_path / "data" / "scenes" / "singles")
    write_data(tmp_path / "data" / "scenes" / "pairs")
    words = ["launch", "submit", "demo.yaml", "--profile", "local", "--dry-run", "--no-memory-check"]
    done = subprocess.run([sys.executable, "-m", "onediff", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "demo"
    assert f"# two (ranks: 2)\n{sys.executable} {run}/launch/code onediff train {run}/config.yaml " in done.stdout
    assert "# evaluate (ranks: 2)\n" in done.stdout and "SBATCH" not in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_run_named_after_onediff_has_the_name_once_in_its_jobs():
    assert [job_name(run, "one") for run in ("demo", "onediff-7b", "onediff")] == [
        "onediff-demo-one",
        "onediff-7b-one",
        "onediff-one",
    ]
