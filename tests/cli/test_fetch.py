"""`onediff fetch` against a local hub: what it downloads, what it ignores, and its errors for what is unavailable."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hub_server import Hub, serving

from onediff.config.compose import load_run
from onediff.hub.files import lacking
from onediff.hub.named import named_in

VICUNA, CLIP, BERT = "lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336", "bert-base-uncased"
LARGE = 12_000_000  # more than the hub's client writes at a time, so that a part of it stays
TAKEN = {
    VICUNA: {
        "config.json": b'{"model_type": "llama"}',
        "generation_config.json": b"{}",
        "pytorch_model-00001-of-00002.bin": LARGE,
        "pytorch_model-00002-of-00002.bin": 100,
        "pytorch_model.bin.index.json": b"",
        "special_tokens_map.json": b"{}",
        "tokenizer.model": b"sentencepiece" * 1000,
        "tokenizer_config.json": b"{}",
    },
    CLIP: {
        "config.json": b'{"model_type": "clip"}',
        "merges.txt": b"",
        "preprocessor_config.json": b"{}",
        "pytorch_model.bin": 100,
        "tokenizer.json": b"{}",
        "vocab.json": b"{}",
    },
    BERT: {
        "config.json": b'{"model_type": "bert"}',
        "model.safetensors": 100,
        "tokenizer.json": b"{}",
        "vocab.txt": b"",
    },
}
LEFT = {
    CLIP: ["README.md", "tf_model.h5"],
    BERT: ["flax_model.msgpack", "onnx/config.json", "pytorch_model.bin", "rust.ot"],
}


def write(file: Path, content: bytes | int) -> None:
    """A file with this content, or weights of that many bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif file.suffix == ".bin":
        with zipfile.ZipFile(file, "w") as weights:
            weights.writestr("archive/data.pkl", bytes(content))
    else:
        header = json.dumps({"x": {"dtype": "U8", "shape": [content], "data_offsets": [0, content]}}).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(content))


@pytest.fixture
def hub(tmp_path):
    """The repositories that the paper's configuration names, laid out as the public ones are."""
    for name, files in TAKEN.items():
        for file, content in files.items():
            write(tmp_path / "hub" / name / file, content)
        for file in LEFT.get(name, []):
            write(tmp_path / "hub" / name / file, b"not wanted")
    files = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    index = {"weight_map": {f"layers.{number}": file for number, file in enumerate(files * 2)}}
    (tmp_path / "hub" / VICUNA / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with serving(tmp_path / "hub") as hub:
        yield hub


def fetch(hub: Hub, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`onediff fetch` of the paper's configuration, with a cache beside the hub."""
    command = [sys.executable, "-m", "onediff", "fetch", "configs/onediff_7b.yaml", *words]
    variables = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(hub.root.parent / "home"),
        "HF_HUB_ETAG_TIMEOUT": "60",
        **environment,
    }
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300)


def test_one_form_of_each_model_is_fetched_once_and_goes_on_where_it_stopped(hub):
    large = f"{VICUNA}/pytorch_model-00001-of-00002.bin"
    hub.cuts[large] = 11_000_000
    done = fetch(hub)
    assert done.returncode == 0, done.stderr
    taken = {f"{name}/{file}" for name, files in TAKEN.items() for file in files}
    # What is empty or told twice by the same digest is not downloaded again.
    assert {word.split()[1] for word in hub.asked} <= taken
    assert f"GET {large} 0" in hub.asked and f"GET {large} 10485760" in hub.asked
    cache = {"HF_HOME": str(hub.root.parent / "home")}
    for one in named_in(load_run("configs/onediff_7b.yaml").model):
        folder = one.folder(cache)
        assert lacking(one, folder) == [] and {path.name for path in folder.iterdir()} == set(TAKEN[one.name])
    hub.asked.clear()
    again = fetch(hub)
    assert again.returncode == 0 and hub.asked == [], "what is here is fetched again"
    offline = fetch(hub, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0 and "cannot be reached (HF_HUB_OFFLINE is set)" in offline.stdout, offline.stderr


def test_a_file_damaged_on_disk_is_fetched_again(hub):
    words = ["model.language.name=no-such-folder/at/all"]  # of the others, while that one is an error
    assert fetch(hub, *words).returncode == 2
    (blob,) = (hub.root.parent / "home").glob(f"hub/models--{BERT}/snapshots/*/model.safetensors")
    content = blob.read_bytes()
    blob.resolve().write_bytes(content[:-1] + b"!")
    done = fetch(hub, *words)
    assert "its digest differs from the hub's; downloading again" in done.stderr
    assert blob.read_bytes() == content
    assert "no-such-folder/at/all: weights, tokenizer missing; this is a folder, not a model on the hub" in done.stderr


def test_folders_are_read_by_the_overrides_that_are_printed(hub, tmp_path):
    done = fetch(hub, "--to", str(tmp_path / "models"))
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout.splitlines()[-1])
    named = named_in(load_run("configs/onediff_7b.yaml", words).model)
    assert {one.where for one in named} == {"model.vision.name", "model.language.name", "model.delta.bert"}
    for one in named:
        assert Path(one.name).parent == tmp_path / "models" and lacking(one, one.folder({})) == []


def test_what_cannot_be_had_is_a_line_each_and_the_rest_comes(hub):
    hub.gated.add(VICUNA)
    done = fetch(
        hub, "model.vision.revision=v9", "model.language.tokenizer=nobody/none", "model.delta.bert=bert-base-uncased"
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("onediff: error:")]
    assert len(lines) == 3 and "Traceback" not in done.stderr
    told = "\n".join(lines)
    assert f"model.vision.name: {CLIP} has no revision 'v9'" in told
    assert f"model.language.name: {VICUNA} requires accepting its terms" in told
    assert "model.language.tokenizer: nobody/none: no such folder, and no such model on the hub" in told
    assert any(word.startswith(f"GET {BERT}/model.safetensors") for word in hub.asked)
    (hub.root / BERT / "model.safetensors").unlink()
    (hub.root / BERT / "pytorch_model.bin").unlink()
    words = ["model.vision.name=/nowhere", "model.language.name=/nowhere"]
    lost = fetch(hub, *words, HF_HOME=str(hub.root.parent / "other"))
    assert f"model.delta.bert: {BERT}: no weights on the hub in a supported format" in lost.stderr
    offline = fetch(hub, *words, HF_HOME=str(hub.root.parent / "third"), HF_HUB_OFFLINE="1")
    assert f"{BERT}: missing (weights), and the hub cannot be reached: HF_HUB_OFFLINE is set" in offline.stderr
