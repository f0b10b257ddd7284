"""Exports as Hugging Face models, loaded in a process in which this project cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import serving
from models import FITS, TINY, tiny_config, tiny_model
from PIL import Image
from streams import tokenizer

import onediff
from onediff.cli import main
from onediff.config.data import PromptConfig
from onediff.config.model import ImageConfig, ModelConfig
from onediff.data.fits import fit_of
from onediff.data.prompts import Prompter
from onediff.errors import UserError
from onediff.hub.huggingface import chat_template, processor_settings, writes_the_same
from onediff.hub.planes_onediff import planes_of
from onediff.hub.processing_onediff import OneDiffProcessor, pixels_of
from onediff.model.onediff import OneDiffModel
from onediff.model.saved import save_model

ALONE = Path(__file__).parents[1] / "support" / "without_onediff.py"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "someone" / "captioner"
    save_model(tiny_model(), tiny_config(), PromptConfig(), tokenizer(), folder, {})
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Pairs of many sizes; the last consists of a transparent image and a 16-bit one."""
    folder, noise = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    names = []
    for number, size in enumerate([(30, 20), (20, 30), (9, 40), (64, 64), (33, 32), (7, 7), (30, 20), (12, 50)]):
        names.append(str(folder / f"{number}.png"))
        colours = noise.integers(0, 255, (*size, 4 if number == 6 else 3), np.uint8)
        grey = noise.integers(0, 65535, size, np.uint16)
        Image.fromarray(grey if number == 7 else colours).save(names[-1])
    return [names[first : first + 2] for first in range(0, len(names), 2)]


def in_own_shape(fit: str, folder: Path) -> Path:
    """An export with `fit: tiles` or `fit: native`, and with the other delta module."""
    config = ModelConfig.model_validate(TINY | FITS[fit] | {"delta": TINY["delta"] | {"kind": "residual"}})
    torch.manual_seed(0)
    save_model(OneDiffModel(config).eval(), config, PromptConfig(), tokenizer(), folder / fit, {})
    return folder / fit


def test_an_export_gives_the_same_captions_with_transformers_alone(exported, pairs, tmp_path):
    exports = [exported, *(in_own_shape(fit, tmp_path) for fit in FITS)]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    done = subprocess.run(
        [sys.executable, str(ALONE), str(tmp_path / "pairs.json"), *map(str, exports)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "HF_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 0, done.stderr
    for folder, said in zip(exports, json.loads(done.stdout.splitlines()[-1])["exports"], strict=True):
        expected = list(onediff.load(folder, "cpu").captions([tuple(pair) for pair in pairs]))
        assert len(set(expected)) == len(expected) and all(expected)
        assert said["together"] == expected, folder.name
        assert [text.strip() for text in said["alone"]] == expected, folder.name
    # Read by whoever the umask lets read, safetensors' own files too.
    assert {path.stat().st_mode & 0o777 for path in exported.rglob("*") if path.is_file()} == {0o666 & ~umask()}


def test_the_index_names_the_file_of_every_parameter(exported):
    from huggingface_hub import get_local_safetensors_metadata
    from transformers import AutoModel

    told = get_local_safetensors_metadata(exported)
    model = AutoModel.from_pretrained(exported, trust_remote_code=True)
    assert set(told.weight_map) == {name for name, _ in model.named_parameters()}
    assert sum(told.parameter_count.values()) == sum(one.numel() for one in model.parameters())


def test_a_pushed_export_is_loaded_by_its_name(exported, pairs, tmp_path):
    """Pushes to a hub and pulls back. The hub's address is read on import, so this runs in other processes."""
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
        assert "--push new/one: HTTP status 401; check that HF_TOKEN is set and allows writing" in refused.stderr
        pushed = python(push, str(exported))
        assert pushed.stdout.strip() == f"{hub.url}/new/one", pushed.stderr
        loaded = python(load)
    assert loaded.stdout.strip() == onediff.load(exported, "cpu").caption(*pairs[0]), loaded.stderr


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


@pytest.mark.parametrize("fit", ["crop", "pad", "squash", "tiles", "native"])
def test_the_processor_of_an_export_preprocesses_images_as_in_training(fit):
    noise = np.random.default_rng(0)
    config = ImageConfig(size=16, fit=fit, shorter_side=20 if fit == "crop" else None, max_patches=12)
    ours, settings = fit_of(config, 4), config.model_dump() | {"patch": 4, "tokens": 16}
    for height, width in ((16, 16), (31, 18), (18, 31), (1, 400), (400, 1), (5, 7)):
        pair = [noise.integers(0, 255, (*size, 3), np.uint8) for size in ((height, width), (height + 3, 2 * width))]
        pair = [Image.fromarray(image) for image in pair]
        seen, planes = ours.of(pair), planes_of(settings, [image.size for image in pair])
        made = pixels_of(pair, settings)
        if fit == "native":
            made = np.concatenate([one[: plane.inputs] for one, plane in zip(made, planes, strict=True)])
        assert (made == seen.images).all(), (height, width)
        assert tuple(len(plane.chosen) for plane in planes) == seen.tokens


@pytest.mark.parametrize("wording", ["what has changed", "first <image> second <image> what has changed"])
def test_the_processor_of_an_export_puts_images_where_the_instruction_marks_them(wording):
    instructions = {"pair": wording, "single": "what is there", "couple": "what is in both"}
    prompter = Prompter(tokenizer(), PromptConfig(instructions=instructions), tiny_config().delta.tokens)
    settings = processor_settings(tiny_model(), tiny_config(), prompter)
    assert writes_the_same(prompter, settings, tokenizer())
    processor = OneDiffProcessor(tokenizer(), settings, chat_template(settings["prompt"]))
    for question in ("", wording):
        prompt = processor.apply_chat_template([{"role": "user", "content": question}])
        assert processor.token_ids(prompt, [4, 4]) == processor.token_ids("", [4, 4])
    with pytest.raises(ValueError, match="one image mark for both images, or one for each"):
        processor.token_ids("<image> a <image> b <image>", [4, 4])


def test_a_model_that_is_not_on_the_hub_is_refused_with_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="nobody/nothing: no such folder, and not available on the hub"):
        onediff.load("nobody/nothing")


def test_an_invalid_name_for_push_is_refused_before_anything_is_read(tmp_path, capsys):
    assert main(["export", str(tmp_path), str(tmp_path / "out"), "--push", "no-owner"]) == 2
    assert "--push 'no-owner': name a repository as OWNER/NAME" in capsys.readouterr().err
