"""Copies in the memory of nodes: passed on, fetched back when a node is lost, refused to strangers, and removed."""

import json
import socket

import pytest
from kept import KeptNodes

from onediff.errors import UserError
from onediff.runs.copies import bring, mirror


@pytest.fixture
def nodes(tmp_path):
    made = KeptNodes(tmp_path / "shm", "node1", "node2", "node3")
    made.link("node1", "node2")
    yield made
    made.end()


def write(nodes: KeptNodes, node: str, generation: str, name: str, content: bytes, *keep: str) -> None:
    place = nodes.place(node) / generation
    place.mkdir(exist_ok=True)
    (place / name).write_bytes(content)
    mirror(nodes.place(node), generation, [name], keep)


def test_a_file_lies_on_two_nodes_and_comes_back_when_its_own_is_lost(nodes):
    large = bytes(range(256)) * 20_000
    write(nodes, "node1", "step-1-a", "rank-0", b"one")
    write(nodes, "node2", "step-1-a", "rank-1", large)
    assert (nodes.place("node2") / "step-1-a" / "rank-0").read_bytes() == b"one"
    assert (nodes.place("node1") / "step-1-a" / "rank-1").read_bytes() == large
    assert not (nodes.place("node3") / "step-1-a").exists(), "a spare holds nothing"
    nodes.lose("node2")
    nodes.link("node1", "node3")
    assert bring(nodes.place("node3") / "step-1-a" / "rank-1")
    assert (nodes.place("node3") / "step-1-a" / "rank-1").read_bytes() == large
    assert not bring(nodes.place("node3") / "step-1-a" / "rank-7")


def test_generations_that_are_not_to_be_kept_go_on_the_next_node_too(nodes):
    for number in range(1, 5):
        keep = [f"step-{number - 1}-a"] if number > 1 else []
        write(nodes, "node1", f"step-{number}-a", "rank-0", b"state", *keep)
    assert sorted(path.name for path in nodes.place("node2").glob("step-*")) == ["step-3-a", "step-4-a"]


def test_strangers_and_names_that_lead_elsewhere_are_refused(nodes):
    told = nodes.told["node1"]
    for token, generation in (("guessed", "step-1-a"), ("a token", ".."), ("a token", "/tmp")):
        asked = {"do": "put", "token": token, "generation": generation, "name": "x", "size": 1, "keep": []}
        with socket.create_connection((told["host"], told["port"])) as line:
            line.sendall(json.dumps(asked).encode() + b"\nx")
            line.settimeout(10)
            answer = line.makefile().readline()
        assert answer == "" if token == "guessed" else "not the name of a copy" in answer
    assert not list(nodes.place("node1").glob("**/x")) and not list(nodes.folder.glob("x"))


def test_a_dead_neighbour_is_an_error_that_names_the_folder(nodes):
    nodes.keepers["node2"].kill()
    nodes.keepers["node2"].wait()
    with pytest.raises(UserError, match="onediff-node1: cannot be copied to another node"):
        write(nodes, "node1", "step-1-a", "rank-0", b"state")
    nodes.keepers.pop("node2")


def test_memory_is_given_back_at_the_end_and_what_a_killed_keeper_left_by_the_next(nodes):
    write(nodes, "node1", "step-1-a", "rank-0", b"state")
    nodes.end("node1")
    assert not nodes.place("node1").exists()
    nodes.keepers["node2"].kill()
    nodes.keepers.pop("node2").wait()
    assert nodes.place("node2").exists() and nodes.place("node3").exists()
    nodes.start("node1")
    assert not nodes.place("node2").exists() and nodes.place("node3").exists(), "only the dead one's"
