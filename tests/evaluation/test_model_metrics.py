"""Metrics by named models, with small random models of the real classes: what is computed, not how well they judge."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from onediff.errors import UserError
from onediff.evaluation.metrics import metric
from onediff.evaluation.report import PairImages
from onediff.evaluation.scoring import score

REFERENCES = {"a": ["the red cube is gone"], "b": ["a dog has appeared", "there is a dog now"], "c": ["no change"]}
CAPTIONS = {"a": "the red cube is gone", "b": "a cat has appeared", "c": ""}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def vocabulary(folder: Path, special: list[str]) -> Path:
    words = {word for texts in REFERENCES.values() for text in texts for word in text.split()} | {
        "cat",
        "photo",
        "depicts",
    }
    (folder / "vocab.txt").write_text("\n".join([*special, *sorted(words), *"abcdefgh"]) + "\n")
    return folder / "vocab.txt"


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path / "tiny-bert"
    folder.mkdir()
    torch.manual_seed(0)
    tokenizer = BertTokenizerFast(str(vocabulary(folder, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])))
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=64, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    from transformers import BertTokenizerFast, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    folder = tmp_path / "tiny-clip"
    folder.mkdir()
    torch.manual_seed(0)
    tokenizer = BertTokenizerFast(str(vocabulary(folder, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])))
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {**small, "vocab_size": 64, "eos_token_id": tokenizer.sep_token_id}
    vision = {**small, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), tokenizer).save_pretrained(folder)
    return folder


def test_bertscore_is_that_of_the_hidden_states_and_is_kept(bert: Path, tmp_path: Path) -> None:
    found = score(REFERENCES, CAPTIONS, "spot-the-diff", metrics=[f"bertscore:{bert}"], bootstrap=20)
    name = "BERTScore tiny-bert"
    each = {pair: scores[name] for pair, scores in found.per_pair().items()}
    assert each["a"] == pytest.approx(1, abs=1e-6)
    assert each["c"] == 0
    assert 0 < each["b"] < 1
    assert found.scores[name] == pytest.approx(np.mean(list(each.values())))
    low, high = found.intervals[name]
    assert low <= found.scores[name] <= high
    assert any(f"{name}: {bert}, weights " in note and ", layer 2" in note for note in found.notes)
    # Once more by hand.
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(bert), AutoModel.from_pretrained(bert).eval()
    states = []
    for text in (CAPTIONS["b"], *REFERENCES["b"]):
        with torch.inference_mode():
            hidden = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[2][0]
        states.append(torch.nn.functional.normalize(hidden, dim=-1))
    best = []
    for reference in states[1:]:
        cosines = states[0] @ reference.T
        precision, recall = cosines.max(1).values[1:-1].mean(), cosines.max(0).values[1:-1].mean()
        best.append(float(2 * precision * recall / (precision + recall)))
    assert each["b"] == pytest.approx(max(best), abs=1e-5)
    kept = tmp_path / "cache" / "onediff" / "metrics" / "bertscore-tiny-bert.jsonl"
    lines = kept.read_text()
    assert len(lines.splitlines()) == 4
    kept.write_text(lines + '{"key": "cut')
    again = score(REFERENCES, CAPTIONS, "spot-the-diff", metrics=[f"bertscore:{bert}"])
    assert again.per_pair() == found.per_pair()
    assert kept.read_text() == lines + '{"key": "cut', "nothing was computed"


def test_clipscore_looks_at_the_image_after_and_at_references(clip: Path, tmp_path: Path) -> None:
    def png(colour: str) -> bytes:
        out = io.BytesIO()
        Image.new("RGB", (40, 40), colour).save(out, "PNG")
        return out.getvalue()

    images = {
        pair: PairImages(png("white"), png(colour))
        for pair, colour in zip("abc", ("red", "green", "blue"), strict=True)
    }
    asked = [f"clipscore:{clip}"]
    found = score(REFERENCES, CAPTIONS, metrics=asked, images=images.get)
    assert set(found.scores) >= {"CLIPScore tiny-clip", "RefCLIPScore tiny-clip"}
    swapped = {pair: PairImages(one.after, one.after) for pair, one in images.items()}
    assert score(REFERENCES, CAPTIONS, metrics=asked, images=swapped.get).scores == found.scores
    lines = (tmp_path / "cache" / "onediff" / "metrics" / "clipscore-tiny-clip.jsonl").read_text().splitlines()
    assert len(lines) == 3 + len({*CAPTIONS.values(), *(text for texts in REFERENCES.values() for text in texts)})
    assert all(len(json.loads(line)["values"]) == 16 for line in lines)
    # PAC-S is the same with another weight, in a model of its own.
    pac = score(REFERENCES, CAPTIONS, metrics=[f"pacscore:{clip}"], images=images.get).scores
    assert pac["PAC-S tiny-clip"] == pytest.approx(found.scores["CLIPScore tiny-clip"] * 2 / 2.5)
    without = score(REFERENCES, CAPTIONS, metrics=asked)
    assert without.as_json()["scores"]["CLIPScore tiny-clip"] is None
    assert any("left out, it needs images; name their data set with --data" in note for note in without.notes)


def test_what_cannot_be_computed_here_is_said_and_the_rest_is(tmp_path: Path) -> None:
    found = score(REFERENCES, CAPTIONS, metrics=["spice", f"bertscore:{tmp_path}/nowhere"])
    assert found.scores["ROUGE-L"] > 0.3
    assert {"SPICE", "BERTScore nowhere"} <= set(found.absent)
    assert any(note.startswith("SPICE: left out, it needs Stanford CoreNLP 3.6.0 in ") for note in found.notes)
    assert any("nowhere cannot be loaded: " in note for note in found.notes)
    with pytest.raises(UserError, match=r"metric 'bertscore': name the model after a colon, as in bertscore:NAME"):
        metric("bertscore")
    with pytest.raises(UserError, match="metric 'rouge' takes no model"):
        metric("rouge:large")
