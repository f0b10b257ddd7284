"""Keeps secrets out of records: passwords in URLs, tokens, and the values of secret environment variables."""

from __future__ import annotations

import os
import re
from typing import Any

MASK = "***"
# Names that hold a secret. `max_tokens`, `delta_tokens` and the like are settings of the model and are not masked.
SECRET_NAME = re.compile(
    r"(?i)(^|[._\- ])(password|passwd|pwd|secret|token|api_?key|access_?key(_id)?|secret_?key|private_?key|credentials?"
    r"|authorization|\w+_(password|passwd|secret|api_?key|access_?key|secret_?key|private_?key|credentials?))$"
)
SECRET_VARIABLE = re.compile(r"(?i)(PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIAL)")
USER_IN_URL = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
SECRET_IN_TEXT = re.compile(
    r"(?i)((?:token|access_token|api[_-]?key|apikey|password|passwd|secret|sig|signature|x-amz-[a-z-]+|"
    r"awsaccesskeyid)=)[^&\s'\"]+"
)
KNOWN_SHAPES = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[\w-]{20,}|"
    r"AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,})"
)
SHORTEST = 8  # masking a shorter value of a secret variable would hit ordinary words


def scrubbed(text: str) -> str:
    """`text` with passwords in URLs, tokens of known formats and values of secret environment variables masked."""
    text = USER_IN_URL.sub(MASK, text)
    text = SECRET_IN_TEXT.sub(rf"\1{MASK}", text)
    text = KNOWN_SHAPES.sub(MASK, text)
    for value in _secrets_of_environment():
        text = text.replace(value, MASK)
    return text


def scrubbed_tree(values: Any, name: str = "") -> Any:
    """Masks nested mappings and lists; a value under a name such as `password` is masked entirely."""
    if isinstance(values, dict):
        return {key: scrubbed_tree(value, str(key)) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [scrubbed_tree(value, name) for value in values]
    if isinstance(values, str):
        return MASK if values and SECRET_NAME.search(name) else scrubbed(values)
    return values


def scrubbed_words(words: list[str]) -> list[str]:
    """A command line without its secrets, `--token VALUE` and `a.password=VALUE` included."""
    made: list[str] = []
    for word in words:
        name, sign, _ = word.partition("=")
        if made and words[len(made) - 1].startswith("-") and SECRET_NAME.search(words[len(made) - 1].lstrip("-")):
            made.append(MASK)
        elif sign and SECRET_NAME.search(name.lstrip("-")):
            made.append(f"{name}={MASK}")
        else:
            made.append(scrubbed(word))
    return made


def _secrets_of_environment() -> list[str]:
    values = {v for k, v in os.environ.items() if SECRET_VARIABLE.search(k) and len(v) >= SHORTEST and "/" not in v[:1]}
    return sorted(values, key=len, reverse=True)
