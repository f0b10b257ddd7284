"""Figures of the ranks: what each did by itself, what it left out, and how much memory it took."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from onediff.runs import section
from onediff.training import stragglers
from onediff.training.probes import MEMORY, NETWORK
from onediff.training.stragglers import StragglerMonitor, added, own_work, what_is_slow

CPU = torch.device("cpu")


def test_a_gathering_every_so_many_steps_and_at_the_last():
    tempo = StragglerMonitor(3, CPU, loads_itself=False, counts_skipped=True)
    found = {step: tempo.after(step, 25, 0.1 * step, 0.0, {"bad_image": step}) for step in range(1, 26)}
    assert [step for step, figures in found.items() if figures] == [21, 25]
    assert found[21]["step_seconds/p50"] == pytest.approx(1.1) and found[21]["step_seconds/max"] == pytest.approx(2.1)
    assert found[25]["step_seconds/p50"] == pytest.approx(2.35), "only the steps since the gathering before"
    assert found[25]["skipped/bad_image"] == 25
    assert found[25]["memory/peak_gib"] == found[25]["memory/peak_gib/rank_0000"] > 0.01


def test_skipped_samples_are_added_up_over_ranks_and_restarts(monkeypatch):
    tempo = StragglerMonitor(1, CPU, loads_itself=False, counts_skipped=True)
    tempo.before = Counter(too_long=5)
    other = {"skipped": {"too_long": 1, "bad_json": 2}}
    assert added([tempo.counts({"too_long": 1}, {}), other], "skipped", tempo.before) == {"too_long": 7, "bad_json": 2}
    tempo.cut_before = Counter(birds=1)
    monkeypatch.setattr(stragglers, "gathered", lambda mine: [mine, {**mine, **other, "cut": {"birds": 2, "pairs": 3}}])
    figures = tempo.after(1, 1, 1.0, 0.0, {}, {"pairs": 1})
    assert {name: value for name, value in figures.items() if name.startswith("cut")} == {
        "cut_answers": 7,
        "cut_answers/birds": 3,
        "cut_answers/pairs": 4,
    }
    second_of_its_group = StragglerMonitor(1, CPU, loads_itself=False, counts_skipped=False)
    assert second_of_its_group.counts({"too_long": 1}, {"pairs": 1}) == {"skipped": {}, "cut": {}}


def test_the_slowest_rank_is_the_one_that_waits_for_data_or_computes_longest():
    ranks = [{"waiting": 0.0, "computing": 1.0, "probe": None}, {"waiting": 2.0, "computing": 0.5, "probe": None}]
    assert own_work(ranks) == [1.0, 2.5]


def test_on_gpus_a_probe_tells_what_the_equally_long_steps_hide():
    ranks = [{"waiting": 0.0, "computing": 2.0, "probe": {MEMORY: probe, NETWORK: 1.0}} for probe in (1.0, 1.0, 1.5)]
    assert own_work(ranks) == [2.0, 2.0, 3.0] and what_is_slow(ranks, 2) == MEMORY
    ranks[1]["waiting"] = 3.0
    assert own_work(ranks) == [2.0, 5.0, 3.0] and what_is_slow(ranks, 1) == "data"


def test_the_heartbeat_names_the_slowest_gpu_and_says_nothing_of_processors(tmp_path, monkeypatch):
    monkeypatch.setattr(section, "_heartbeat", None)
    section.keep_heartbeat(tmp_path, "one")
    monkeypatch.setattr(
        stragglers, "gathered", lambda mine: [mine, *({**mine, "probe": {MEMORY: time}} for time in (2.0, 1.0))]
    )
    monitor = StragglerMonitor(1, CPU, loads_itself=False, counts_skipped=True)
    for probe, step in ((None, 1), (SimpleNamespace(seconds=lambda: {MEMORY: 1.0}), 2)):
        monitor.probe = probe
        monitor.after(step, step, 1.0, 0.0, {})
        section._heartbeat.write()
        told = json.loads((tmp_path / section.FILE).read_text())["slowest"]
        assert told == (None if probe is None else {"step": 2, "rank": 1, "share": 1.0, "by": MEMORY})
