"""The language model's tokenizer: pretrained, or trained on the training captions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from onediff.config.model import LanguageConfig
from onediff.errors import UserError
from onediff.model.lean import transformers
from onediff.model.tokenizer_files import knows_words, why_unreadable

PAD, START, END = "<pad>", "<s>", "</s>"


def load_tokenizer(config: LanguageConfig, learned: Path) -> Any:
    """The tokenizer of `config`; a newly trained one is read from the folder `learned`.

    Raises UserError if it cannot be read, has no vocabulary, or has no end-of-text token.
    """
    named = isinstance(config.tokenizer, str) or config.tokenizer is None
    name = str(config.tokenizer or config.name) if named else str(learned)
    revision = config.revision if name == config.name else None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as error:  # readers of vocabularies raise many kinds of exceptions
        reason = why_unreadable(name, revision, error)
        raise UserError(f"model.language.tokenizer: cannot read {name!r}: {reason}") from None
    if not knows_words(tokenizer):
        reason = why_unreadable(name, revision, None)
        raise UserError(f"model.language.tokenizer: cannot read {name!r}: {reason}")
    if tokenizer.eos_token_id is None:
        raise UserError(f"model.language.tokenizer: {name!r} has no end-of-text token, so an answer could not end")
    return tokenizer


def learn_tokenizer(texts: Iterable[str], vocabulary: int, folder: Path) -> None:
    """Trains a byte-level BPE of at most `vocabulary` pieces and saves it in `folder`. Deterministic."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=END
    )
    wrapped.save_pretrained(folder)
