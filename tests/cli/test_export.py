"""`onediff export` of a real run: its card, earlier exports, and runs of others that may only be read."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_run import onediff, render, train

from onediff import load
from onediff.cli import main
from onediff.config.compose import load_run
from onediff.data.heldout import HeldOut
from onediff.data.rows import collate
from onediff.training.export import saved_model_of

ALONE = Path(__file__).parents[1] / "support" / "without_onediff.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    data = render(tmp_path_factory.mktemp("data"), pairs=20, singles=20)
    more = {"training.captions_every": 1, "training.sample_captions": 2}
    done = train(folder, data, 1, "--phases", "warm-up", **more)
    assert done.returncode == 0, done.stderr
    done = onediff(["evaluate", str(folder), "limit=2", "bootstrap=20"])
    assert done.returncode == 0, done.stderr
    return folder


def test_an_export_has_a_card_and_is_not_replaced_unasked(run, tmp_path, capsys):
    words = ["export", str(run), str(tmp_path / "model")]
    assert main(words) == 0
    card = (tmp_path / "model" / "README.md").read_text()
    for told in ("| warm-up | 1 |", "pairs-test", "| CIDEr |", "](examples/000-before.png)", "CC0-1.0", "## Limits"):
        assert told in card, card
    assert (tmp_path / "model" / "examples" / "000-before.png").is_file()
    before = (tmp_path / "model" / "config.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main(words) == 2
    assert "model: already holds an export; replace it with --overwrite" in capsys.readouterr().err
    assert (tmp_path / "model" / "config.json").stat().st_mtime_ns == before
    assert main([*words, "--overwrite"]) == 0


def test_a_calibrated_model_warns_of_photographs_and_its_exports_and_reports_carry_it(run, tmp_path, capsys):
    skimage_data = pytest.importorskip("skimage.data")
    for name in ("astronaut", "coffee"):
        Image.fromarray(getattr(skimage_data, name)()).save(tmp_path / f"{name}.png")
    photographs = [str(tmp_path / "astronaut.png"), str(tmp_path / "coffee.png")]
    assert main(["calibrate", str(run), "--about", "rendered scenes"]) == 0
    said = capsys.readouterr().out
    assert "no confidence: calibration needs 10 right captions" in said and "4 pairs of pairs-test" in said
    exported = tmp_path / "model"
    assert main(["export", str(run), str(exported)]) == 0
    assert "OneDiff's own commands warn about such images" in (exported / "README.md").read_text()
    capsys.readouterr()
    assert main(["caption", *photographs, "--model", str(exported)]) == 0
    warning = "unlike the model's training images: rendered scenes"
    assert f"{warning}\n" in capsys.readouterr().err
    held_out = HeldOut.open(Path(load_run(run).data.sets["pairs"].path) / "test")
    pairs = [tuple(held_out.sample(pair).images[role] for role in ("before", "after")) for pair in held_out.references]
    judged = list(load(exported, "cpu").judged([*pairs, photographs]))
    assert [one.warning for one in judged[:-1]] == [None] * len(pairs)
    assert warning in (judged[-1].warning or "") and judged[-1].confidence is None


def test_a_model_that_invents_changes_on_held_out_pairs_learns_to_refuse(run, tmp_path, capsys):
    """This model has hardly been trained: it tells something of every pair."""
    (tmp_path / "still.yaml").write_text("changes: {none: 1}\n")
    words = ["--scenes", str(tmp_path / "still.yaml"), "--pairs", "12", "--split-sizes", "test=1", "--processes", "1"]
    assert main(["data", "render", "--out", str(tmp_path / "still"), *words]) == 0
    capsys.readouterr()
    assert main(["calibrate", str(run), "--held-out", str(tmp_path / "still" / "pairs"), "--images", "20"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"false alarms +100.0% before, +\d+.\d% after, of 12 pairs", said), said
    held_out = HeldOut.open(tmp_path / "still" / "pairs" / "test")
    (first, *_) = held_out.references
    for role, data in held_out.sample(first).images.items():
        (tmp_path / f"{role}.png").write_bytes(data)
    shown = [str(tmp_path / f"{role}.png") for role in ("before", "after")]
    assert main(["caption", *shown, "--model", str(run)]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() in {caption for some in held_out.references.values() for caption in some}
    assert printed.err.startswith("not believed: ")
    # A caption that tells no change is never replaced, so how likely that is is not asked.
    captioner = load(saved_model_of(run))
    asked = captioner.nothing(
        [captioner.row(*shown)] * 2, ["nothing has changed", "a cube is gone"], ["nothing has changed"]
    )
    assert np.isnan(asked).tolist() == [True, False]
    assert main(["calibrate", str(run), "--held-out", str(tmp_path / "nowhere")]) == 2
    assert f"--held-out: no pairs in val or test of {tmp_path / 'nowhere'}" in capsys.readouterr().err


def test_a_run_that_cannot_be_written_to_is_captioned_from_by_a_copy_in_the_cache(run, tmp_path, monkeypatch, capsys):
    """Root may write anywhere, so the lock of the run's own export is made one that nobody can open."""
    shutil.rmtree(run / "model", ignore_errors=True)
    (run / ".model.lock").unlink(missing_ok=True)
    (run / ".model.lock").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    assert main(["caption", str(tmp_path / "a.png"), str(tmp_path / "a.png"), "--model", str(run)]) == 0
    assert not (run / "model").exists() and list((tmp_path / "cache").rglob("onediff.yaml"))
    (run / ".model.lock").rmdir()


def test_a_run_trained_again_to_the_same_step_is_not_evaluated_by_the_export_of_its_former_weights(run, tmp_path):
    again = shutil.copytree(run, tmp_path / "again")
    before = (saved_model_of(again) / "delta.safetensors").read_bytes()
    shutil.rmtree(again / "checkpoints")
    (again / "phase-warm-up" / "finished.json").unlink()
    data = Path(load_run(again / "config.yaml").data.sets["pairs"].path).parent
    done = train(again, data, 1, "--phases", "warm-up", "--resume", **{"training.seed": 1})
    assert done.returncode == 0, done.stderr
    exported = saved_model_of(again)
    assert (exported / "delta.safetensors").read_bytes() != before
    written = (exported / "onediff.yaml").stat().st_mtime_ns
    assert saved_model_of(again) == exported and (exported / "onediff.yaml").stat().st_mtime_ns == written


def test_a_place_that_cannot_be_written_is_one_line(run, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["export", str(run), str(tmp_path / "file" / "model")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("onediff: error: ") and "cannot be written" in line


@pytest.mark.long
def test_torch_and_transformers_in_an_environment_of_their_own_caption_token_for_token(run, tmp_path):
    """What somebody does who has an export and never heard of this project: a new environment, two packages, a pair."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=600)
    python = str(environment / "bin" / "python")
    wanted = [f"{name}=={metadata.version(name).partition('+')[0]}" for name in ("torch", "transformers", "pillow")]
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot install {', '.join(wanted)}: {done.stderr.strip().splitlines()[-1]}")
    exported, pairs = tmp_path / "model", []
    assert main(["export", str(run), str(exported)]) == 0
    for number in range(4):
        pairs.append([str(exported / "examples" / f"{number:03}-{role}.png") for role in ("before", "after")])
    pairs = [pair for pair in pairs if Path(pair[0]).is_file()]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    words = [python, str(ALONE), str(tmp_path / "pairs.json"), str(exported)]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables["HF_HOME"] = str(tmp_path / "home")
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, cwd=tmp_path, env=variables)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert not {"onediff", "deepspeed", "mlflow", "megatron", "pydantic_settings"} & set(said["packages"])
    (theirs,) = said["exports"]
    for pair, caption, alone, tokens in zip(pairs, theirs["together"], theirs["alone"], theirs["tokens"], strict=True):
        here = onediff(["caption", *pair, "--model", str(run)])
        assert here.returncode == 0, here.stderr
        assert here.stdout.strip() == caption == alone.strip()
        ours = load(exported, "cpu")
        made = ours.model.generate(
            collate([ours.row(*pair)], pad_left=True), max_new_tokens=64, eos_token_id=ours.processor.prompter.ends
        )
        assert tokens[: made.shape[1]] == made[0].tolist()
