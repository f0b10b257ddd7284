"""Where the time of a phase went, and word of what happened to it."""

import http.server
import json
import sys
import threading

import pytest

from launcher.alerts import Alerts
from launcher.goodput import in_words, recoveries, seconds_by_kind
from launcher.profile import ClusterProfile
from launcher.record import Attempt, Record, write_json
from onediff.config.section import validated
from onediff.errors import UserError


def a_run(folder) -> Record:
    """Submitted at 100, started at 130, failed at 330 in step 20 (17 saved), restarted in the job, ended at 600."""
    record = Record(folder)
    write_json(record.plan_file, {"phases": {"one": {}}})
    record.write_jobs([{"phase": "one", "job": "7", "submitted": 100.0}])
    first = Attempt(1, "7", ["a", "b"], 4, 130.0, 0, ended=335.0, last_step=20, cause="crash", action="restart")
    first.failed, first.launched, first.moved = 330.0, 132.0, 160.0
    first.seconds = {"start": 10.0, "loading": 14.0, "step": 150.0, "saving": 20.0}
    second = Attempt(2, "7", ["a", "b"], 4, 336.0, 20, ended=600.0, last_step=60, cause="finished", action="done")
    second.launched, second.moved, second.repeated = 337.0, 372.0, 9.0
    second.seconds = {"start": 10.0, "loading": 14.0, "step": 189.0, "evaluation": 40.0, "saving": 10.0}
    record.write_attempts("one", [first, second])
    return record


def test_every_second_of_a_phase_has_one_kind(tmp_path):
    record = a_run(tmp_path)
    spent = seconds_by_kind(record, "one")
    assert sum(spent.values()) == pytest.approx(500), spent
    wanted = {"productive": 330, "queue": 31, "repeat": 9, "saving": 30, "evaluation": 40, "start": 23, "loading": 28}
    assert spent == pytest.approx({**wanted, "hang": 0, "other": 9})
    (recovery,) = recoveries(record.attempts("one"))
    assert tuple(recovery)[2:] == (5.0, 1.0, 1.0, 24.0, 11.0) and recovery.total == 42.0
    assert in_words(record, "one").startswith("goodput 66 % of 8m20s; queue 0m31s")
    assert in_words(record, "one").endswith("recovered in 42 s")


class Receiver(http.server.BaseHTTPRequestHandler):
    heard: list[dict]

    def do_POST(self):
        self.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_alerts_reach_a_webhook_and_a_command_rate_limited_and_without_secrets(tmp_path, monkeypatch, capsys):
    Receiver.heard = []
    with http.server.HTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OUR_HOOK", f"http://127.0.0.1:{server.server_port}/hook?token=hidden")
        monkeypatch.setenv("HF_TOKEN", "not-for-anybody")
        program = f"import sys; open({str(tmp_path / 'told')!r}, 'a').write(sys.stdin.read() + chr(10))"
        wish = {"webhook": "$OUR_HOOK", "command": [sys.executable, "-c", program], "minutes": 60}
        alerts = Alerts(wish, "/runs/x", "two")
        alerts.tell("failure", "rank 3 ended: url=https://me:secret@host not-for-anybody")
        alerts.tell("failure", "again")
        alerts.tell("failure", "and again")
        alerts.tell("end", "finished")
        alerts.finish()
        alerts.pause = 0
        alerts.tell("failure", "later")
        alerts.finish()
        server.shutdown()
    texts = [one["text"] for one in Receiver.heard]
    assert sorted(texts) == sorted(json.loads(line)["text"] for line in (tmp_path / "told").read_text().splitlines())
    assert set(texts) == {
        "OneDiff failure: /runs/x, phase two: rank 3 ended: url=https://***@host ***",
        "OneDiff end: /runs/x, phase two: finished",
        "OneDiff failure: /runs/x, phase two: later (2 more since the last one)",
    }
    monkeypatch.setenv("OUR_HOOK", "http://127.0.0.1:9/hook?token=hidden")
    away = Alerts({"webhook": "$OUR_HOOK", "events": ["end"]}, "/runs/x", "two")
    away.tell("failure", "not asked for")
    away.tell("end", "nobody hears")
    away.finish()
    assert capsys.readouterr().out.count("alert not sent: ") == 1
    with pytest.raises(UserError, match=r"alerts\.webhook: expected an http"):
        validated(ClusterProfile, {"tasks_per_node": 1, "alerts": {"webhook": "ftp://x"}}, "p.yaml")
