"""The commands of `onediff launch` on another host, over a real ssh server."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ssh_server
from launch_runs import Launched

from launcher.ssh import packed

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="there is no ssh (openssh-client)")
HOUSE = Path(__file__).parents[2]


def test_a_run_is_submitted_followed_and_explained_on_a_host(tmp_path):
    there, here = tmp_path / "a cluster", tmp_path / "laptop"
    (there / ".venv" / "bin").mkdir(parents=True)
    program = there / ".venv" / "bin" / "onediff"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{HOUSE}" exec {sys.executable} -m onediff "$@"\n')
    program.chmod(0o755)
    made = Launched(here)
    made.profile |= {"scheduler": "local", "tasks_per_node": 2}
    made.write()
    with ssh_server.serving(tmp_path / "ssh") as client:

        def onediff(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "onediff", "launch", *words],
                cwd=here,
                env={**os.environ, "PYTHONPATH": str(HOUSE), "PATH": f"{client}:{os.environ['PATH']}"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=200,
                check=False,
            )

        host = ("--host", f"login:{there}")
        submit = ("submit", "run.yaml", "--run", "run", "--profile", "profile.yaml", "--phases", "one")
        done = onediff(*submit, *host)
        assert done.returncode == 0, done.stderr
        assert len((there / "run" / "steps-one.txt").read_text().splitlines()) == 20
        assert not (here / "run").exists()
        told = onediff("explain", "run", *host)
        assert "Everything has finished." in told.stdout, told.stderr
        wrong = onediff("status", "elsewhere", "--host", f"login:{there}")
        assert wrong.returncode == 2 and "elsewhere: no such run was submitted" in wrong.stderr
        lost = onediff("status", "--host", "nowhere.invalid:x")
        assert lost.returncode == 2 and "--host nowhere.invalid: ssh could not connect" in lost.stderr


def test_a_named_profile_and_the_values_of_options_stay_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["configs/demo.yaml", "optimizer.lr=1e-3", "--profile", "my-cluster", "--run", "runs/a.yaml"]
    said, files = packed("submit", words)
    assert said[1:] == words[1:] and said[0].startswith("runs/sent/") and list(files) == [said[0]]
    assert packed("status", ["runs/a.yaml"]) == (["runs/a.yaml"], {})
