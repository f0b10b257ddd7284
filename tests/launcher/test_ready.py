"""What a run will read is looked at before anything is queued, and each thing missing told with the command for it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import serving
from launch_runs import write_data
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM

from launcher.profile import ClusterProfile
from launcher.ready import note_container, unfit
from onediff.cli import main
from onediff.config.compose import load_run
from onediff.model.tokenizer import learn_tokenizer
from onediff.training.dry_build import faults

TOWER, LANGUAGE, BERT = "openai/clip-vit-large-patch14-336", "lmsys/vicuna-7b-v1.5", "bert-base-uncased"
VISION = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
VISION |= {"image_size": 64, "patch_size": 16}
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Narrow models in the files that the public ones have."""
    root = tmp_path_factory.mktemp("hub")
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPModel(
        CLIPConfig(text_config={**text, "vocab_size": 99, **ENDS}, vision_config=VISION, projection_dim=16)
    )
    clip.config.save_pretrained(root / TOWER)
    torch.save(clip.state_dict(), root / TOWER / "pytorch_model.bin")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=400, **sizes))
    llama.config.save_pretrained(root / LANGUAGE)
    state, index = llama.state_dict(), {}
    for number in (0, 1):
        file = f"pytorch_model-0000{number + 1}-of-00002.bin"
        part = {name: state[name].clone() for name in list(state)[number::2]}
        torch.save(part, root / LANGUAGE / file)
        index |= dict.fromkeys(part, file)
    (root / LANGUAGE / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    learn_tokenizer(["what has changed in the image"] * 3, 390, root / LANGUAGE)
    BertModel(BertConfig(vocab_size=50, **sizes)).save_pretrained(root / BERT)
    (root / BERT / "vocab.txt").write_text("a\n")
    return root


@pytest.fixture
def run_file(tmp_path):
    """A configuration of those models by their names on the hub, with data sets that are not made yet."""
    sizes = {"layers": 2, "width": 64, "heads": 4, "intermediate": 96}
    values = {
        "name": "small",
        "model": {
            "vision": {"name": TOWER, "levels": [1, 2, 4], "image": {"size": 64}},
            "delta": {"tokens": 8, "bert": BERT, **sizes},
            "language": {"name": LANGUAGE},
        },
        "data": {"sets": {"pairs": str(tmp_path / "scenes" / "pairs")}},
        "phases": {"one": {"mix": {"pairs": 1}, "steps": 1, "global_batch": 8, "micro_batch": 1}},
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def onediff(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onediff", *map(str, words)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)


def test_a_dry_run_says_what_is_missing_and_the_commands_that_it_names_mend_it(models, run_file, tmp_path):
    submit = ["launch", "submit", run_file, "--run", tmp_path / "run", "--profile", "plain"]
    home = {"HF_HOME": str(tmp_path / "home")}
    dry = onediff(*submit, "--dry-run", **home)
    assert dry.returncode == 0, dry.stderr
    assert "#SBATCH" in dry.stdout
    lines = [line for line in dry.stderr.splitlines() if line.startswith("still missing: ")]
    made, fetch = (shlex.split(line.partition("→ run: ")[2]) for line in lines)
    assert made[:5] == ["onediff", "data", "render", "--out", str(tmp_path / "scenes")]
    assert f"models {TOWER} (model.vision.name: weights), {LANGUAGE} (" in lines[1]
    real = onediff(*submit, **home)
    assert real.returncode == 2 and not (tmp_path / "run").exists()
    (error,) = real.stderr.splitlines()
    assert error == "onediff: error: " + "; ".join(lines)
    with serving(models) as hub:
        assert onediff(*fetch[1:], HF_ENDPOINT=hub.url, **home).returncode == 0
    assert (
        onediff(*made[1:], "--pairs", "40", "--singles", "40", "--processes", "1").returncode == 0
    )  # as named, but fewer
    whole = onediff(*submit, "--dry-run", **home)
    assert whole.returncode == 0 and "still missing" not in whole.stderr, whole.stderr
    assert "not checked" not in whole.stderr and "export HF_HUB_OFFLINE=1" in whole.stdout
    # With the nodes left to fetch, nothing is said of models and the hub may be asked.
    left = onediff(*submit, "--dry-run", "--no-weights-check")
    assert (left.returncode, left.stderr) == (0, "") and "HF_HUB_OFFLINE" not in left.stdout


def test_the_papers_run_can_be_planned_and_tried_with_nothing_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    plan = "plan configs/onediff_7b.yaml --gpus 64 --gpu h100-80g"
    submit = "launch submit configs/onediff_7b.yaml --nodes 8 --profile infiniband --dry-run"
    for line in (plan, submit):
        assert main(line.split()) == 0
        told = "".join(capsys.readouterr())
        assert re.search(
            r"missing: data sets llava-558k, spot.* → run: onediff data build configs/diffcap.yaml\n", told
        )
        assert re.search(r"missing: models openai.*vicuna.*bert.* → run: onediff fetch configs/onediff_7b.yaml\n", told)
    assert list(tmp_path.iterdir()) == []


def test_what_training_would_refuse_is_not_queued(run_file, tmp_path, capsys):
    words = ["launch", "submit", str(run_file), "model=models/tiny", "model.delta.bert=null"]
    words += ["--run", str(tmp_path / "run"), "--profile", "plain", "--dry-run"]
    assert main([*words, "model.language.config.vocab_sise=64"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "onediff: error: model.language.config: unknown key 'vocab_sise' (did you mean 'vocab_size'?)"
    )


def test_a_split_that_no_data_set_has_is_missing(run_file, tmp_path, capsys):
    write_data(tmp_path / "scenes" / "pairs")
    main(["data", "index", str(tmp_path / "scenes" / "pairs"), "--processes", "1"])
    validated = ["phases.one.validate_every=1", "phases.one.validation.split=vall"]
    validates = "split vall (phases.one.validation: the data set pairs has no split 'vall') → "
    evaluates = "split tset (no data set of phase one has it) → "
    for overrides, told in (
        (validated, f"{validates}set validation.split to one of test, train"),
        (["evaluation.split=tset"], f"{evaluates}fix evaluation.split (did you mean 'test'?)"),
    ):
        words = [str(run_file), *overrides]
        run = ["--run", str(tmp_path / "run")]
        assert main(["launch", "submit", *words, *run, "--profile", "plain", "--no-weights-check"]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"onediff: error: still missing: {told}"
        assert main(["train", *words, *run]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"onediff: error: still missing: {told}"
        assert main(["plan", *words, "model=models/tiny", "model.delta.bert=null", "--gpus", "8"]) == 0
        assert f"still missing: {told}" in capsys.readouterr().out.splitlines()
    assert not (tmp_path / "run").exists()


def test_what_is_left_of_a_run_is_built_before_it_is_queued_again(run_file, tmp_path, capsys):
    """Only the phases to come count, and the pretrained weights, which these do not read, may be gone."""
    values = yaml.safe_load(run_file.read_text())
    values["model"]["vision"] |= {"name": "not/here", "config": {"model_type": "clip_vision_model", **VISION}}
    values["model"]["language"] |= {"name": "not/here", "config": {"model_type": "llama", "hidden_size": 64}}
    values["phases"]["two"] = {**values["phases"]["one"], "lora": {"targets": ["q_prj"]}}
    values["phases"]["one"]["vision_last"] = 99
    run_file.write_text(yaml.safe_dump(values))
    write_data(tmp_path / "scenes" / "pairs")
    (tmp_path / "run" / "phase-one").mkdir(parents=True)
    (tmp_path / "run" / "phase-one" / "finished.json").write_text('{"step": 1}')
    submit = ["launch", "submit", str(run_file), "--run", str(tmp_path / "run"), "--profile", "plain", "--dry-run"]
    assert main([*submit, "--no-memory-check"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "onediff: error: phases.two.lora.targets: the language model has no layer 'q_prj' (did you mean 'q_proj'?)"
    )


def named(models: Path, run_file: Path, *overrides: str) -> list[str]:
    """What does not fit, with the models named by their folders."""
    words = [f"model.{where}={models / name}" for where, name in PLACES.items()]
    config = load_run(run_file, [*words, *overrides])
    return list(faults(config))


PLACES = {"vision.name": TOWER, "language.name": LANGUAGE, "delta.bert": BERT}


def test_headers_and_tokenizer_are_compared_with_the_configuration(models, run_file, tmp_path):
    assert named(models, run_file) == []
    (told,) = named(models, run_file, "model.delta.width=32")
    assert "2 layers of width 64, but the delta module has 2 of width 32" in told
    (told,) = named(models, run_file, "model.vision.levels=[1,9]")
    assert "model.vision.levels: 9 is outside" in told
    fields = json.loads((models / LANGUAGE / "config.json").read_text())
    (told,) = set(named(models, run_file, f"model.language.config={json.dumps(fields)}"))
    assert "model.language.config: " in told and "'rms_norm_eps' expected float, got str" in told  # 1e-06, in YAML
    narrow = yaml.safe_dump({**fields, "intermediate_size": 80}, default_flow_style=True)
    (told,) = named(models, run_file, f"model.language.config={narrow}")
    assert "gate_proj.weight is [96, 64] in its files, but [80, 64] in the configured LlamaForCausalLM" in told
    small = yaml.safe_dump({**fields, "vocab_size": 256}, default_flow_style=True)
    first, second = named(models, run_file, f"model.language.config={small}")
    assert "pieces, but the language model has 256 embeddings" in first and "embed_tokens.weight is [400, 64]" in second
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    (told,) = named(models, run_file, f"model.language.tokenizer={tmp_path / 'broken'}")
    assert f"model.language.tokenizer: cannot read '{tmp_path / 'broken'}'" in told


def test_damaged_files_are_missing_and_a_machine_without_torch_is_told(models, run_file, tmp_path, monkeypatch, capsys):
    for name in PLACES.values():
        (tmp_path / "copy" / name).mkdir(parents=True)
        for file in (models / name).iterdir():
            (tmp_path / "copy" / name / file.name).write_bytes(file.read_bytes())
    cut = [tmp_path / "copy" / TOWER / "pytorch_model.bin", tmp_path / "copy" / BERT / "model.safetensors"]
    for file in cut:
        file.write_bytes(file.read_bytes()[:-100])
    (tmp_path / "copy" / LANGUAGE / "pytorch_model-00002-of-00002.bin").unlink()
    words = [f"model.{where}={tmp_path / 'copy' / name}" for where, name in PLACES.items()]
    write_data(tmp_path / "scenes" / "pairs")
    submit = ["launch", "submit", str(run_file), *words, "--run", str(tmp_path / "run"), "--profile", "plain"]
    assert main(submit) == 2
    told = capsys.readouterr().err
    assert f"{cut[0]}: not readable as PyTorch weights) → fix model.vision.name" in told
    assert re.search(rf"{cut[1]}: \d+ bytes, but its header says \d+\) → fix model.delta.bert", told)
    assert "pytorch_model-00002-of-00002.bin) → fix model.language.name" in told
    monkeypatch.setattr("launcher.ready.sys.executable", "/bin/false")
    assert unfit(load_run(run_file).model_dump_json(), False, ()) == []
    assert "not checked whether the model can be built" in capsys.readouterr().err


def test_folders_that_a_container_may_not_show_are_named(run_file, tmp_path, capsys):
    container = {"image": "x.sqsh", "mounts": [f"{tmp_path / 'home'}:/models"]}
    cluster = ClusterProfile(gpus_per_node=8, container=container, environment={"HF_HOME": str(tmp_path / "home")})
    config = load_run(run_file)
    note_container(config.model, config.data, cluster)
    told = capsys.readouterr().err
    assert str(tmp_path / "scenes") in told and str(tmp_path / "home") not in told
