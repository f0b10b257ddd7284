"""An export is a Hugging Face model: it captions in a process in which this project cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_server import serving
from models import tiny_config, tiny_model
from PIL import Image
from streams import tokenizer

import onediff
from onediff.cli import main
from onediff.config.data import PromptConfig
from onediff.config.model import ImageConfig
from onediff.data.images import fitted
from onediff.errors import UserError
from onediff.hub.modeling_onediff import squared
from onediff.model.saved import save_model

ALONE = Path(__file__).parents[1] / "support" / "without_onediff.py"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "someone" / "captioner"
    save_model(tiny_model(), tiny_config(), PromptConfig(), tokenizer(), folder, {})
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    folder, noise = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    names = []
    for number, size in enumerate([(30, 20), (20, 30), (9, 40), (64, 64), (33, 32), (7, 7)]):
        names.append(str(folder / f"{number}.png"))
        Image.fromarray(noise.integers(0, 255, (*size, 3), np.uint8)).save(names[-1])
    return [names[:2], names[2:4], names[4:]]


def test_an_export_captions_by_transformers_alone_what_it_captions_here(exported, pairs, tmp_path):
    expected = list(onediff.load(exported, "cpu").captions([tuple(pair) for pair in pairs]))
    assert len(set(expected)) == len(expected) and all(expected)
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    done = subprocess.run(
        [sys.executable, str(ALONE), str(exported), str(tmp_path / "pairs.json")],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "HF_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["together"] == expected
    assert [text.strip() for text in said["alone"]] == expected
    # Read by whoever the umask lets read, safetensors' own files too.
    assert {path.stat().st_mode & 0o777 for path in exported.rglob("*") if path.is_file()} == {0o666 & ~umask()}


def test_the_index_names_the_file_of_every_parameter(exported):
    from huggingface_hub import get_local_safetensors_metadata
    from transformers import AutoModel

    told = get_local_safetensors_metadata(exported)
    model = AutoModel.from_pretrained(exported, trust_remote_code=True)
    assert set(told.weight_map) == {name for name, _ in model.named_parameters()}
    assert sum(told.parameter_count.values()) == sum(one.numel() for one in model.parameters())


def test_an_export_is_pushed_as_a_repository_that_is_loaded_by_its_name(exported, pairs, tmp_path):
    """The whole way to a hub and back; its address is read on import, so other processes go it."""
    push = "import sys; from pathlib import Path; from onediff.hub.share import push; "
    push += "print(push(Path(sys.argv[1]), 'new/one'))"
    load = f"import onediff; print(onediff.load('new/one', 'cpu').caption(*{pairs[0]}))"
    with serving(tmp_path / "hub") as hub:
        known = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_writer"}

        def python(code: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
            variables = known | {"HF_HOME": str(tmp_path / "home")} | more
            command = [sys.executable, "-c", code, *words]
            return subprocess.run(command, capture_output=True, text=True, timeout=600, env=variables)

        (tmp_path / "hub").mkdir(exist_ok=True)
        refused = python(push, str(exported), HF_TOKEN="hf_reader")
        assert "--push new/one: " in refused.stderr and "is HF_TOKEN set and may it write?" in refused.stderr
        pushed = python(push, str(exported))
        assert pushed.stdout.strip() == f"{hub.url}/new/one", pushed.stderr
        loaded = python(load)
    assert loaded.stdout.strip() == onediff.load(exported, "cpu").caption(*pairs[0]), loaded.stderr


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_the_processor_of_an_export_prepares_images_as_training_does(fit):
    noise = np.random.default_rng(0)
    config = ImageConfig(size=16, fit=fit, shorter_side=20 if fit == "crop" else None)
    for height, width in ((16, 16), (31, 18), (18, 31), (1, 400), (400, 1), (5, 7)):
        image = Image.fromarray(noise.integers(0, 255, (height, width, 3), np.uint8))
        assert (squared(image, config.model_dump()) == fitted(image, config)).all(), (height, width)


def test_what_is_on_no_hub_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="nobody/nothing: no such folder, and the hub does not have it"):
        onediff.load("nobody/nothing")


def test_a_wrong_name_to_push_to_is_refused_before_anything_is_read(tmp_path, capsys):
    assert main(["export", str(tmp_path), str(tmp_path / "out"), "--push", "no-owner"]) == 2
    assert "--push 'no-owner': name a repository as OWNER/NAME" in capsys.readouterr().err
