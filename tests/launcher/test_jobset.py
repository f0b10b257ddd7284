"""A run as a Kubernetes JobSet: valid manifests, and pods whose command trains."""

import os
import subprocess
import sys
from pathlib import PurePosixPath

import kubernetes_validate
import pytest
import small_run
import yaml

from launcher.jobset import PORT, Pods, label, manifests
from launcher.local import Node, free_port, rank_variables
from onediff.cli import main
from onediff.config.compose import load_run
from onediff.errors import UserError


def job_of(replicated):
    """The Job that the JobSet controller would make."""
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": replicated["name"]}, **replicated["template"]}


def test_the_papers_run_is_valid_phases_wait_for_each_other_and_bad_input_ends_it():
    done = small_run.onediff(
        [
            "launch",
            "jobset",
            "configs/onediff_7b.yaml",
            "--image",
            "registry/onediff:1",
            "--claim",
            "data",
            "--nodes",
            "8",
        ]
    )
    assert done.returncode == 0, done.stderr
    settings, jobset = yaml.safe_load_all(done.stdout)
    kubernetes_validate.validate(settings, "1.34", strict=True)
    phases = jobset["spec"]["replicatedJobs"]
    for phase in phases:
        kubernetes_validate.validate(job_of(phase), "1.34", strict=True)
    assert [phase["name"] for phase in phases] == ["one", "two", "evaluate"]
    assert [phase.get("dependsOn") for phase in phases] == [
        None,
        [{"name": "one", "status": "Complete"}],
        [{"name": "two", "status": "Complete"}],
    ]
    assert [phase["template"]["spec"]["completions"] for phase in phases] == [8, 8, 1]
    assert yaml.safe_load(settings["data"]["config.yaml"])["name"] == "onediff-7b"
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


@pytest.mark.long
def test_the_commands_of_two_pods_train_as_two_ranks_of_one_machine_do(tmp_path):
    data = small_run.render(tmp_path / "data")
    config = small_run.config(data, 3)
    pods = Pods("image", "claim", tmp_path / "shared", nodes=2, gpus=0)
    mounted, jobset = yaml.safe_load_all(manifests(config, ["warm-up"], pods))
    (phase,) = jobset["spec"]["replicatedJobs"]
    script = phase["template"]["spec"]["template"]["spec"]["containers"][0]["command"][2]
    settings = tmp_path / "settings"
    settings.mkdir()
    (settings / "config.yaml").write_text(mounted["data"]["config.yaml"])
    # The cluster's names: the mounted configuration, and the first pod's host.
    script = script.replace("/etc/onediff", str(settings)).replace(
        f"demo-warm-up-0-0.demo:{PORT}", f"127.0.0.1:{free_port()}"
    )
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    started = [
        subprocess.Popen(
            ["sh", "-c", script],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "HOSTNAME": f"pod-{index}", "JOB_COMPLETION_INDEX": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    for pod in started:
        out, _ = pod.communicate(timeout=300)
        assert pod.returncode == 0, out
    alone = small_run.train(tmp_path / "alone", data, 3, "--phases", "warm-up", "--processes", "2")
    assert alone.returncode == 0, alone.stderr
    of_pods = small_run.metrics(tmp_path / "shared" / "runs" / "demo", "warm-up")
    assert len(of_pods) == 3 and of_pods == small_run.metrics(tmp_path / "alone", "warm-up")


def test_ranks_of_a_machine_among_others_meet_on_the_first():
    node = Node.of("1/3", "first:29500")
    made = rank_variables(2, {}, node)
    assert [(one["RANK"], one["LOCAL_RANK"], one["WORLD_SIZE"], one["MASTER_ADDR"]) for one in made] == [
        ("2", "0", "6", "first"),
        ("3", "1", "6", "first"),
    ]
    for place, meet, why in (("3/3", "a:1", "--node 3/3"), ("0/2", None, "--meet"), (None, "a:1", "--node")):
        with pytest.raises(UserError, match=why):
            Node.of(place, meet)


def test_what_cannot_be_shared_out_or_named_is_refused():
    config = load_run("configs/onediff_7b.yaml", [])
    with pytest.raises(UserError, match=r"cannot split a global batch"):
        manifests(config, ["one"], Pods("i", "c", PurePosixPath("/shared"), nodes=7))
    with pytest.raises(UserError, match=r"name: '\+\+' is not a valid Kubernetes name"):
        label("++", "name")


def test_what_training_would_refuse_is_not_written(tmp_path, capsys):
    words = ["launch", "jobset", "configs/demo.yaml", "model=models/tiny", "--image", "i", "--claim", "c"]
    words += ["--gpus-per-node", "1", "--out", str(tmp_path / "run.yaml")]
    for override, told in (
        ("evaluation.metrics=[sider]", "evaluation.metrics: no metric 'sider' (did you mean 'cider'?)"),
        ("optimizer.betas=[0.9,1.5]", "optimizer.betas.1: input should be less than 1, got 1.5"),
        ("model.vision.config.model_type=clipp", "model.vision: models of type clipp are not supported"),
    ):
        assert main([*words, override]) == 2
        assert told in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "file").touch()
    for option, told in (
        (["--claim", "A B"], "--claim 'A B': not the name of a claim"),
        (["--image", ""], "--image '': not the name of an image"),
        (["--mount", "shared"], "--mount shared: give an absolute path"),
        (["--out", str(tmp_path / "file" / "run.yaml")], "run.yaml: cannot be written (File exists)"),
    ):
        assert main([*words, *option]) == 2
        assert told in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run.yaml").exists()
    assert main(words) == 0 and (tmp_path / "run.yaml").exists()
