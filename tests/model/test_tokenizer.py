"""Tokenizers: trained on captions, or pretrained."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from onediff.config.data import DataConfig
from onediff.config.model import LanguageConfig, ModelConfig
from onediff.errors import UserError
from onediff.model import tokenizer_files
from onediff.model.build import build_processor
from onediff.model.tokenizer import END, PAD, START, learn_tokenizer, load_tokenizer

TEXTS = ["a red cube was added", "the small blue ball moved to the left", "nothing has changed"] * 5
LEARNED = LanguageConfig(config={"model_type": "llama"}, tokenizer={"vocabulary": 300})


@pytest.fixture
def learned(tmp_path):
    learn_tokenizer(TEXTS, 300, tmp_path / "tokenizer")
    return load_tokenizer(LEARNED, tmp_path / "tokenizer")


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_any_text_is_decoded_to_itself(learned):
    for text in (*TEXTS, "Größe ≥ 3 — 猫 🐈", " two  spaces", "never seen words: xylophone"):
        assert learned.decode(ids(learned, text)) == text


def test_it_has_end_tokens_and_a_bounded_vocabulary(learned):
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


def test_a_missing_tokenizer_or_one_without_an_end_token_is_refused(tmp_path, learned):
    missing = LanguageConfig(config={"model_type": "llama"}, tokenizer=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"model.language.tokenizer: cannot read '.*nowhere'") as refused:
        load_tokenizer(missing, tmp_path)
    assert "\n" not in str(refused.value)
    learned.eos_token = None
    learned.save_pretrained(tmp_path / "endless")
    endless = LanguageConfig(config={"model_type": "llama"}, tokenizer=str(tmp_path / "endless"))
    with pytest.raises(UserError, match="has no end-of-text token"):
        load_tokenizer(endless, tmp_path)


LLAMA = json.dumps({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def sentencepiece_model(folder: Path) -> Path:
    """A folder like Vicuna's, with a `tokenizer.model` trained by SentencePiece itself and no `tokenizer.json`."""
    import sentencepiece

    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",  # as Llama's: spaces count
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer_config.json").write_text(LLAMA)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def read(folder: Path):
    return load_tokenizer(LanguageConfig(config={"model_type": "llama"}, tokenizer=str(folder)), folder)


def test_a_sentencepiece_vocabulary_alone_is_read_as_sentencepiece_reads_it(tmp_path):
    import sentencepiece

    found = read(sentencepiece_model(tmp_path / "vicuna"))
    theirs = sentencepiece.SentencePieceProcessor(str(tmp_path / "vicuna" / "tokenizer.model"))
    for text in (*TEXTS[:3], "Größe: 3", "two  spaces", "a\nline"):
        assert ids(found, text) == theirs.encode(text)
        assert found.decode(ids(found, text)) == theirs.decode(theirs.encode(text))
    assert (found.bos_token_id, found.eos_token_id) == (1, 2)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"tokenizer_config.json": LLAMA},
            "it has no vocabulary file: none of tokenizer.json, tokenizer.model",
        ),
        ({"tokenizer_config.json": '{"eos_token": "</s>"}'}, "it has no vocabulary file: none of"),
        ({"tokenizer_config.json": LLAMA, "tokenizer.model": "xx"}, "tokenizer.model is damaged, or of a kind"),
        (
            {"tokenizer_config.json": LLAMA, "tokenizer.model": "version https://git-lfs.github.com/spec/v1\noid 1"},
            "tokenizer.model is a Git LFS pointer",
        ),
        ({"tokenizer_config.json": LLAMA, "tokenizer.model": "IQ== 0\nIg== 1\n"}, "is a tiktoken vocabulary"),
        ({"tokenizer_config.json": LLAMA, "tokenizer.json": "{"}, "tokenizer.json: Expecting property name"),
        (
            {"tokenizer_config.json": '{"tokenizer_class": "A", "auto_map": {"AutoTokenizer": ["a.A", null]}}'},
            "it needs its own code, which OneDiff does not run",
        ),
    ],
)
def test_the_error_names_what_a_tokenizer_lacks(tmp_path, files, message):
    """Instead of the last way that transformers tried. An empty tokenizer is refused too."""
    for name, text in {"config.json": '{"model_type": "llama"}', **files}.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as refused:
        read(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_tokenizer_that_was_not_fetched_is_not_called_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(tokenizer_files, "model_file", lambda *_: None)  # as where the hub cannot be reached
    with pytest.raises(UserError, match=r"cannot read 'lmsys/vicuna-7b-v1.5': .* run `onediff fetch CONFIG`"):
        load_tokenizer(LanguageConfig(name="lmsys/vicuna-7b-v1.5"), tmp_path)


@pytest.mark.parametrize("package", ["sentencepiece", "protobuf"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    folder = sentencepiece_model(tmp_path / "vicuna")
    monkeypatch.setitem(tokenizer_files.PACKAGES, package, "no_such_module")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: 1 / 0)  # what it raises then says nothing
    with pytest.raises(UserError, match=rf"tokenizer.model needs the package {package}, which is missing; `pip"):
        read(folder)


def test_more_pieces_than_embeddings_are_refused(tmp_path, learned):
    config = ModelConfig.model_validate(
        {
            "vision": {"config": {"model_type": "clip_vision_model"}},
            "language": {"config": {"model_type": "llama", "vocab_size": 200}, "tokenizer": {"vocabulary": 300}},
        }
    )
    with pytest.raises(
        UserError, match=rf"the tokenizer has {len(learned)} pieces, but the language model has 200 embeddings"
    ):
        build_processor(config, DataConfig(sets={"a": "."}), tmp_path / "tokenizer")
