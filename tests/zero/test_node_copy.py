"""`parallel.shard_within: node`: two simulated nodes of two ranks keep copies of the weights, with the same results."""

import shutil
from pathlib import Path

import equality
import pytest
from equality import PHASES
from small_run import render

from onediff.config.parallel import ParallelConfig, ranks_within
from onediff.errors import UserError
from onediff.parallel.topology import Topology
from onediff.ranks import Ranks
from onediff.runs.folder import RunFolder

STEPS = 4
MODEL = ["model.language.config.num_hidden_layers=2", "model.vision.config.num_hidden_layers=2"]
MODEL += ["model.vision.levels=[1, 2]", "model.delta.layers=2", "phases.two.checkpoint_every=2"]
# Weights are released and gathered again, like those of a large model.
GATHERS = (
    "{stage3_max_live_parameters: 1000, stage3_max_reuse_distance: 1000, stage3_param_persistence_threshold: 1000}"
)
NODE = "parallel.shard_within=node"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """A configuration, the folder of its run on four ranks without copies, and the overrides of both."""
    folder = tmp_path_factory.mktemp("world")
    data = render(folder / "data", 30, 30)
    config = equality.configuration(folder, STEPS, 8, 256)
    words = [*equality.overrides(data), *MODEL, f"parallel.deepspeed={GATHERS}"]
    equality.run(config, folder, 4, words, [3], per_node=2)
    return config, folder / "3", words


@pytest.fixture(scope="module")
def node(world, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with copies on both nodes."""
    config, _, words = world
    folder = tmp_path_factory.mktemp("node")
    equality.run(config, folder, 4, [*words, NODE], [3], per_node=2)
    return folder / "3"


def compare(found: Path, wanted: Path, phases: tuple[str, ...] = PHASES) -> None:
    for phase in phases:
        print(phase, equality.difference(found, wanted, phase, STEPS))


@pytest.mark.long
def test_training_with_copies_on_nodes_is_the_same_as_without(node, world):
    compare(node, world[1])


@pytest.mark.long
@pytest.mark.parametrize(
    ("ranks", "more"),
    [(8, ["parallel.tensor=2"]), (4, ["parallel.offload_parameters=cpu", "parallel.offload_optimizer=cpu"])],
    ids=["tensor", "offload"],
)
def test_it_is_the_same_with_tensor_groups_and_with_offload(ranks, more, world, tmp_path):
    config, wanted, words = world
    equality.run(config, tmp_path, ranks, [*words, NODE, *more], [3], per_node=ranks // 2)
    compare(tmp_path / "3", wanted)


@pytest.mark.long
@pytest.mark.parametrize("keeps", [True, False])
def test_a_run_resumes_with_copies_and_without(keeps, node, world, tmp_path):
    """From a checkpoint, whose weights the copies must have."""
    config, wanted, words = world
    run = RunFolder(shutil.copytree(wanted if keeps else node, tmp_path / "3"))
    shutil.rmtree(run.checkpoints("two") / f"step-{STEPS:08d}")
    (run.phase("two") / "finished.json").unlink()
    more = [NODE] * keeps
    equality.run(config, tmp_path, 4, [*words, *more], [3], per_node=2, resume=True, phases=["two"])
    compare(run.path, wanted, ("two",))


def test_nodes_that_cannot_share_a_copy_are_refused_with_one_line():
    assert ranks_within("node", 2, 32, 8) == 4
    assert ranks_within("world", 2, 32, 8) == ranks_within("node", 2, 8, 8) == 0, "one node keeps no second copy"
    for tensor, world in ((3, 32), (2, 12), (16, 32)):
        with pytest.raises(
            UserError, match=f"node needs full nodes with whole tensor groups, but there are {world} ranks, 8 per node"
        ):
            ranks_within("node", tensor, world, 8)
    with pytest.raises(
        UserError, match=r"every rank of a node the whole weights, because its 8 ranks form one tensor group; use sh"
    ):
        ranks_within("node", 8, 32, 8)
    with pytest.raises(ValueError, match="shard_within: node needs zero_stage 3; use shard_within: world at stage 2"):
        ParallelConfig(shard_within="node", zero_stage=2)


def test_a_nodes_copy_is_shared_by_ranks_with_the_same_blocks():
    place = Topology(Ranks(5, 1, 8, 4), 2, None)
    assert place.same_blocks_by_node() == [[0, 2], [1, 3], [4, 6], [5, 7]]
