"""Context parallelism: the language model's tokens are divided among ranks, with the same results."""

import shutil
from pathlib import Path

import equality
import pytest
from causal_models import small_config
from equality import PHASES
from places import SUPPORT
from processes import run_ranks
from small_run import metrics, render

from onediff.config.parallel import ParallelConfig
from onediff.errors import UserError
from onediff.model.families import check_shares
from onediff.parallel.topology import Topology, check_world
from onediff.ranks import Ranks
from onediff.runs.folder import RunFolder

STEPS = 4
# Fewer heads for keys than ranks, so that each is sent to two of them.
MODEL = ["model.language.config.num_key_value_heads=2", "model.language.config.num_hidden_layers=2"]
MODEL += ["model.vision.config.num_hidden_layers=2", "model.vision.levels=[1, 2]", "model.delta.layers=2"]
MEASURED = [f"phases.{phase}.{key}" for phase in PHASES for key in ("validate_every=2", "validation.split=test")]
EVERY = [f"phases.{phase}.micro_batch=2" for phase in PHASES] + ["phases.two.checkpoint_every=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("data"), 30, 30)


@pytest.fixture(
    scope="module", params=[pytest.param(256, id="packed"), pytest.param(None, id="padded", marks=pytest.mark.long)]
)
def alone(request, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """A configuration, the folder of its run on one rank, and the overrides of both."""
    folder = tmp_path_factory.mktemp("alone")
    config = equality.configuration(folder, STEPS, 4, request.param)
    words = [*equality.overrides(data), *MODEL, *MEASURED, *EVERY]
    equality.run(config, folder, 1, words, [0])
    return config, folder / "0", words


@pytest.fixture(scope="module")
def in_two(alone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the tokens divided among two ranks."""
    config, _, words = alone
    runs = tmp_path_factory.mktemp("in-two")
    equality.run(config, runs, 2, [*words, "parallel.context=2"], [3])
    return runs / "3"


def compare(found: Path, wanted: Path, phases: tuple[str, ...] = PHASES) -> None:
    for phase in phases:
        print(phase, equality.difference(found, wanted, phase, STEPS))
        measured, known = (metrics(run, phase, "validation/loss") for run in (found, wanted))
        assert measured == pytest.approx(known, abs=1e-5) and len(known) == 2
        for name in ("targets", "tokens", "samples"):
            assert metrics(found, phase, name) == metrics(wanted, phase, name)


def test_two_context_ranks_train_as_one_rank_does(in_two, alone):
    compare(in_two, alone[1])


@pytest.mark.long
@pytest.mark.parametrize(("tensor", "context", "ranks"), [(1, 2, 2), (2, 2, 4), (1, 4, 4), (1, 2, 4)])
def test_more_ranks_and_tensor_groups_train_the_same_at_every_stage(tensor, context, ranks, alone, tmp_path):
    config, wanted, words = alone
    here = [f"parallel.tensor={tensor}", f"parallel.context={context}", f"parallel.sequence={tensor > 1}"]
    equality.run(config, tmp_path, ranks, [*words, *here], [0, 1, 2, 3])
    for stage in range(4):
        compare(tmp_path / str(stage), wanted)


@pytest.mark.long
@pytest.mark.parametrize("stage", [1, 3])
def test_two_context_ranks_train_the_same_with_the_optimizer_on_the_host(stage, alone, tmp_path):
    config, wanted, words = alone
    equality.run(config, tmp_path, 2, [*words, "parallel.context=2", "parallel.offload_optimizer=cpu"], [stage])
    compare(tmp_path / str(stage), wanted)


@pytest.mark.long
def test_adapters_train_the_same_with_the_optimizer_on_the_host_or_not(alone, tmp_path):
    """At a learning rate at which the adapters have an effect."""
    config, _, words = alone
    words = [*words, "phases.two.lora={rank: 4, alpha: 8}", "phases.two.lr_of={language: 1.0e-3}"]
    equality.run(config, tmp_path / "alone", 1, words, [0])
    for offload in ("none", "cpu"):
        here = ["parallel.context=2", f"parallel.offload_optimizer={offload}"]
        equality.run(config, tmp_path / offload, 2, [*words, *here], [3])
        compare(tmp_path / offload / "3", tmp_path / "alone" / "0")


def test_a_run_resumes_without_context_parallelism(in_two, alone, tmp_path):
    config, wanted, words = alone
    run = RunFolder(shutil.copytree(in_two, tmp_path / "0"))
    shutil.rmtree(run.checkpoints("two") / "step-00000004")
    (run.phase("two") / "finished.json").unlink()
    equality.run(config, tmp_path, 1, words, [0], resume=True, phases=["two"])
    compare(run.path, wanted, ("two",))


def test_tensor_groups_with_context_parallelism_have_the_losses_and_gradients_of_the_whole_model():
    """With fewer key heads than ranks. `test_families.py` tests every model type."""
    run_ranks(SUPPORT / "context_worker.py", ["2", "llama"], 4)


def test_ranks_of_a_row_are_neighbours():
    places = [Topology(Ranks(rank, rank, 12, 12), 2, None, cp_size=3) for rank in range(12)]
    assert [(t.dp_rank, t.cp_rank, t.tp_rank) for t in places[5:8]] == [(0, 2, 1), (1, 0, 0), (1, 0, 1)]
    assert {(t.dp_size, t.copies) for t in places} == {(2, 6)}
    assert [t.ranks.rank for t in places if t.reads] == [0, 6]


def test_invalid_combinations_are_refused_with_one_line():
    llama = small_config("llama")
    check_shares(llama, 2, 2)
    with pytest.raises(UserError, match=r"context: 4 attention heads .* among 8 ranks .*tensor 2 × parallel.context 4"):
        check_shares(llama, 2, 4)
    with pytest.raises(UserError, match=r"mamba models do not support context parallelism; use parallel.context=1"):
        check_shares(small_config("mamba"), 1, 2)
    stretched = small_config("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(UserError, match="rotary embeddings of type dynamic depend on the longest row"):
        check_shares(stretched, 1, 2)
    with pytest.raises(UserError, match="6 processes cannot be split into groups of 4; start a multiple of 4"):
        check_world(ParallelConfig(tensor=2, context=2), Ranks(0, 0, 6, 6))
