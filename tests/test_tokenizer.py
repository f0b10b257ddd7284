"""Tokenizers: learned from captions, or read by name."""

import pytest

from onediff.data.config import DataConfig
from onediff.errors import UserError
from onediff.model.build import build_row_maker
from onediff.model.config import LanguageConfig, ModelConfig
from onediff.model.tokenizer import END, PAD, START, learn_tokenizer, load_tokenizer

TEXTS = ["a red cube was added", "the small blue ball moved to the left", "nothing has changed"] * 5
LEARNED = LanguageConfig(config={"model_type": "llama"}, tokenizer={"vocabulary": 300})


@pytest.fixture
def learned(tmp_path):
    learn_tokenizer(TEXTS, 300, tmp_path / "tokenizer")
    return load_tokenizer(LEARNED, tmp_path / "tokenizer")


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_any_text_comes_back(learned):
    for text in (*TEXTS, "Größe ≥ 3 — 猫 🐈", " two  spaces", "never seen words: xylophone"):
        assert learned.decode(ids(learned, text)) == text


def test_it_has_ends_and_stays_small(learned):
    assert (learned.pad_token, learned.bos_token, learned.eos_token) == (PAD, START, END)
    assert [learned.pad_token_id, learned.bos_token_id, learned.eos_token_id] == [0, 1, 2]
    assert len(learned) <= 300
    assert len(ids(learned, TEXTS[0])) < len(TEXTS[0]) * 0.7


def test_the_same_texts_give_the_same_tokenizer(tmp_path):
    for name in ("one", "two"):
        learn_tokenizer(TEXTS, 300, tmp_path / name)
    files = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    learn_tokenizer(["other words"], 300, tmp_path / "three")
    assert (tmp_path / "three" / "tokenizer.json").read_bytes() != files[0]


def test_by_name(tmp_path, learned):
    learned.save_pretrained(tmp_path / "named")
    named = LanguageConfig(config={"model_type": "llama"}, tokenizer=str(tmp_path / "named"))
    found = load_tokenizer(named, tmp_path / "nowhere")
    assert ids(found, TEXTS[1]) == ids(learned, TEXTS[1])


def test_a_tokenizer_that_is_not_there_or_cannot_end(tmp_path, learned):
    missing = LanguageConfig(config={"model_type": "llama"}, tokenizer=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"model.language.tokenizer: cannot read '.*nowhere'") as refused:
        load_tokenizer(missing, tmp_path)
    assert "\n" not in str(refused.value)
    learned.eos_token = None
    learned.save_pretrained(tmp_path / "endless")
    endless = LanguageConfig(config={"model_type": "llama"}, tokenizer=str(tmp_path / "endless"))
    with pytest.raises(UserError, match="has no end-of-text token"):
        load_tokenizer(endless, tmp_path)


def test_more_pieces_than_embeddings_are_refused(tmp_path, learned):
    config = ModelConfig.model_validate(
        {
            "vision": {"config": {"model_type": "clip_vision_model"}},
            "language": {"config": {"model_type": "llama", "vocab_size": 200}, "tokenizer": {"vocabulary": 300}},
        }
    )
    with pytest.raises(UserError, match=rf"the tokenizer has {len(learned)} pieces, the language model 200 embeddings"):
        build_row_maker(config, DataConfig(sets={"a": "."}), tmp_path / "tokenizer")
