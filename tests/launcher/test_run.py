"""A run from Python."""

import pytest
import slurm_cluster
from launch_runs import Launched, undisturbed

import launcher
from launcher.profile import load_profile
from onediff.errors import UserError


@pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing()))
def test_a_run_is_submitted_waited_for_and_explained_from_python(launched, cluster, monkeypatch):
    made = launched(faults=[{"phase": "one", "step": 5, "do": "wait"}])
    made.write()
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(made.home)
    profile = str(made.home / "profile.yaml")
    run = launcher.submit("run.yaml", profile=profile, nodes=2, phases=["one"], run="run")
    with pytest.raises(TimeoutError, match=r"still one (waiting|running)"):
        run.wait(timeout=0.2, pause=0.1)
    with pytest.raises(UserError, match="phase one is"):
        launcher.submit("run.yaml", profile=profile, nodes=2, phases=["one"], run="run")
    (made.run / "go").touch()
    (state,) = run.wait(timeout=200, pause=0.5)
    assert (state.state, state.step) == ("finished", 20) and run.finished() and made.curve("one") == undisturbed(20)
    assert launcher.Run.open("run").explain().endswith("Everything has finished.")


def test_a_run_on_this_machine_that_fails_says_why(tmp_path, monkeypatch):
    made = Launched(tmp_path / "home", faults=[{"phase": "one", "step": 1, "do": "exit 2", "once": False}])
    made.profile |= {"scheduler": "local", "tasks_per_node": 1}
    made.config["phases"] = {"one": {"mix": {"pairs": 1}, "steps": 20, "global_batch": 8, "micro_batch": 1}}
    made.write()
    monkeypatch.chdir(made.home)
    profile = load_profile(str(made.home / "profile.yaml"))
    run = launcher.submit("run.yaml", profile=profile, phases=["one"], run="run")
    with pytest.raises(UserError, match=r"phase one failed: shards/x.tar: no such shard"):
        run.wait()
