"""Two processes never train one run: they would remove each other's checkpoints."""

import subprocess
import sys
from pathlib import Path

import small_run

from onediff.config.compose import write_run
from onediff.runs.sole import sole_training

HOLDER = "import sys, time, pathlib; from onediff.runs.sole import sole_training"
HOLDER += "; lock = sole_training(pathlib.Path(sys.argv[1])); print('held', flush=True); time.sleep(1000)"


def test_a_run_that_a_process_trains_is_refused_to_another_until_the_first_has_died(tmp_path: Path) -> None:
    run, data = tmp_path / "run", small_run.render(tmp_path / "data")
    run.mkdir()
    write_run(small_run.config(data, 2), run / "config.yaml")
    before = (run / "config.yaml").read_bytes()
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            second = small_run.train(run, data, 3, "--resume")
        finally:
            holder.kill()
    assert second.returncode == 2
    assert (
        f"onediff: error: {run}: process {holder.pid} on " in second.stderr and "is training this run" in second.stderr
    )
    assert (run / "config.yaml").read_bytes() == before
    sole_training(run).close()
