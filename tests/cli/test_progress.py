"""Progress in a log: whole lines with rate and time left, and none for what is done at once."""

import io
import re

from onediff import progress as module
from onediff.progress import progress


def test_a_log_gets_whole_lines_with_rate_and_time_left(monkeypatch):
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    import sys

    with progress(100, "scenes train", "samples") as bar:
        for _ in range(3):
            bar.update(10)
    told = sys.stderr.getvalue()
    assert "\r" not in told and told.endswith("left\n")
    lines = told.splitlines()
    assert re.fullmatch(r"scenes train: 30 of 100, .*samples/s, .* left", lines[-1]), lines


def test_a_short_task_says_nothing(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    import sys

    with progress(3, "scenes", "samples") as bar:
        bar.update(3)
    with progress(3, "scenes", "samples", shown=False) as bar:
        bar.update(3)
    assert sys.stderr.getvalue() == ""
