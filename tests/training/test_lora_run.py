"""A run whose second phase trains adapters and the last tower layers: two ranks that share the model, then one alone."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from small_run import metrics, onediff, render
from transformers import AutoModelForCausalLM

from onediff.cli import main
from onediff.config.compose import load_run
from onediff.model.lora import is_adapter
from onediff.parallel.ranks import Ranks
from onediff.parallel.topology import Topology
from onediff.runs.folder import RunFolder
from onediff.training.checkpoint import checkpoints, read_manifest, read_weights
from onediff.training.checkpoint.folder import step_of
from onediff.training.start import starting_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped after the first phase and resumed by another number of processes."""
    folder = tmp_path_factory.mktemp("adapted")
    data = render(folder / "data", 40, 40)
    phase = {"global_batch": 4, "micro_batch": 2, "checkpoint_every": 1}
    values = {
        "name": "adapted",
        "model": "models/tiny",
        "data": "data/scenes",
        "training": {"precision": "fp32", "sample_captions": 2},
        "parallel": {"zero_stage": 3},
        "phases": {
            "one": {**phase, "mix": {"singles": 1}, "steps": 2},
            "two": {
                **phase,
                "mix": {"pairs": 1},
                "train": ["vision", "delta", "projector", "language"],
                "vision_last": 2,
                "lora": {"rank": 4, "targets": ["q_proj", "o_proj", "down_proj"]},
                "weight_decay_of": {"delta": 0.1},
                "steps": 6,
                "keep_checkpoints": 1,
                "keep_every": 2,
            },
        },
        "tracking": {"live": False},
        "evaluation": {"max_new_tokens": 4},
    }
    config = folder / "adapted.yaml"
    config.write_text(yaml.safe_dump(values))
    sets = [f"data.sets.{name}={data / name}" for name in ("pairs", "singles")]
    words = ["train", str(config), *sets, "data.workers=0", "--run", str(folder / "run")]
    done = onediff([*words, "--processes", "2", "parallel.tensor=2", "phases.two.steps=3"])
    assert done.returncode == 0, done.stderr
    (folder / "run" / "phase-two" / "finished.json").unlink()
    done = onediff([*words, "--resume", "parallel.zero_stage=2"])
    assert done.returncode == 0, done.stderr
    assert "phase two continues from step 3" in done.stderr
    return folder / "run"


def newest(run: Path, phase: str) -> Path:
    return checkpoints(RunFolder(run).checkpoints(phase))[-1]


def test_steps_go_on_and_checkpoints_at_multiples_are_kept(run):
    assert list(metrics(run, "two")) == [1, 2, 3, 4, 5, 6]
    assert [step_of(path) for path in checkpoints(RunFolder(run).checkpoints("two"))] == [2, 4, 6]


def test_only_what_the_phase_names_changed(run):
    before, after = (dict(read_weights(newest(run, phase))) for phase in ("one", "two"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    language = {name for name in changed if name.startswith("language.")}
    assert {name.split(".")[-2] for name in language} == {"q_proj", "o_proj", "down_proj"}
    vision = {name for name in changed if name.startswith("vision.")}
    assert vision
    assert all(".layers.2." in name or ".layers.3." in name for name in vision)


def test_frozen_weights_have_no_moments(run):
    parameters = read_manifest(newest(run, "two")).parameters
    with_moments = {name for name, parameter in parameters.items() if "exp_avg" in parameter.states}
    assert {name for name in with_moments if name.startswith("language.")} == {
        name for name in parameters if is_adapter(name)
    }


@torch.no_grad()
def test_the_export_is_merged_and_holds_the_adapter(run, tmp_path):
    assert main(["export", str(run), str(tmp_path / "model")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model" / "language")
    base = AutoModelForCausalLM.from_config(merged.config)
    weights = dict(read_weights(newest(run, "one")))
    base.load_state_dict(
        {
            name: weights.get(f"language.{name}", weights["language.model.embed_tokens.weight"])
            for name in base.state_dict()
        }
    )
    adapted = PeftModel.from_pretrained(base.eval(), tmp_path / "model" / "adapter")
    ids = torch.arange(1, 30)[None]
    torch.testing.assert_close(adapted(ids).logits, merged.eval()(ids).logits, rtol=1e-5, atol=1e-5)
    assert main(["checkpoint", "convert", str(run), str(tmp_path / "plain")]) == 0


def test_another_run_starts_from_it_its_adapters_merged_or_going_on(run, tmp_path):
    stored, merged = read_manifest(newest(run, "two")).parameters, dict(read_weights(newest(run, "two")))
    shutil.copytree(run / "tokenizer", tmp_path / "tokenizer")
    settings = load_run(run, [f"init={run}@two"])
    for phase in ("one", "two"):
        model, _ = starting_model(settings, phase, RunFolder(tmp_path), Topology(Ranks(), 1, None))
        adapted = {name for name, _ in model.named_parameters() if is_adapter(name)}
        assert adapted == (set() if phase == "one" else {name for name in stored if is_adapter(name)})
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                assert parameter.any(), "an adapter that starts over is zero"
            elif phase == "one":
                assert torch.equal(parameter, merged[name]), name
