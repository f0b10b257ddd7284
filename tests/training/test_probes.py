"""What a GPU and its node are measured by."""

import json
from pathlib import Path

import pytest
import torch
from processes import run_ranks

from onediff.ranks import Ranks
from onediff.training.probes import MEMORY, NETWORK, PRODUCT_TIME, Probes, slowness

WORKER = Path(__file__).parents[1] / "support" / "probes_worker.py"


def test_a_rank_is_as_slow_as_its_worst_probe():
    probes = [{PRODUCT_TIME: 1.0, MEMORY: 2.0}, {PRODUCT_TIME: 1.1, MEMORY: 3.0}, {PRODUCT_TIME: 1.0, MEMORY: 2.0}]
    assert slowness(probes)[1] == (1.5, MEMORY)


def test_few_nodes_have_no_probe_of_the_network():
    assert set(Probes(torch.device("cpu"), Ranks(), 8, 64).seconds()) == {PRODUCT_TIME, MEMORY}


@pytest.mark.long
def test_of_four_nodes_the_one_with_slow_links_is_named_and_not_those_that_talk_to_it(tmp_path):
    run_ranks(WORKER, [str(tmp_path / "found.json")], 4)
    network = [probe[NETWORK] for probe in json.loads((tmp_path / "found.json").read_text())]
    assert network[2] > 0.19 and max(network[:2] + network[3:]) < 0.1, network
