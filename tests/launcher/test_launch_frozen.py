"""The code frozen with a run is what its jobs run."""

import subprocess
import sys

from launcher.freeze import freeze_code
from launcher.record import Record


def test_frozen_code_runs_from_anywhere_and_is_refused_once_it_was_changed(tmp_path):
    record = Record(tmp_path / "run")
    record.folder.mkdir(parents=True)
    freeze_code(record.folder)
    code, elsewhere = record.folder / "code", tmp_path / "checkout"
    (elsewhere / "launcher").mkdir(parents=True)
    (elsewhere / "launcher" / "__init__.py").write_text("raise SystemExit('the working directory runs')")

    def told(*words: str) -> str:
        done = subprocess.run([sys.executable, *words], cwd=elsewhere, capture_output=True, text=True)
        assert done.returncode
        return done.stdout + done.stderr

    job = ["launcher.job", str(record.run), "one"]
    assert "plan.json: no such file; the run's folder was removed" in told(str(code), *job), "it begins"
    installed = [sys.executable, "-m", *job]
    done = subprocess.run(installed, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and f"instead of the code frozen in {code}; submit it again" in done.stdout
    with (code / "launcher" / "rules.py").open("a") as file:
        file.write("# a small change\n")
    assert f"{code}: changed since it was frozen; to continue with" in told(str(code), *job)
