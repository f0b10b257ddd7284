"""Writes a table of captions for rows: one question per row; good and rejected answers go to separate files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.captioning.answers import clean, fault_of
from data_prep.readers import Row
from onediff.atomic import write_whole
from onediff.errors import UserError
from onediff.llm import Asker

PROMPTS = Path(__file__).parent / "prompts"


def caption_rows(rows: Sequence[Row], prompt: str, asker: Asker, out: Path) -> Counter[str]:
    """Writes the table `out` and `<out>.rejected.jsonl`; counts `good`, `failed`, `rejected: …` and tokens of all runs.

    Rows that are incomplete in the raw data are rejected without a question. Raises UserError, before it asks anything, for
    a text that a row does not have, and for images inside the annotations, which the table could not name.
    """
    incomplete = [row for row in rows if row.fault]
    rows = [row for row in rows if not row.fault]
    for row in rows:
        if any(isinstance(value, bytes) for value in row.images.values()):
            raise UserError(
                f"{row.where}: its images are inside the table, but the table of captions can only name them; write them "
                "to files, and their paths into the table"
            )
    questions = [question_of(prompt, row) for row in rows]
    answers: dict[str, dict[str, Any]] = {}
    tokens = Counter[str]()
    asked = asker.ask_all(questions)
    for question, record in tqdm(asked, total=len(set(questions)), unit=" questions", disable=None, leave=False):
        if record:
            answers[question] = record
            tokens.update({"tokens in": record["tokens_in"], "tokens out": record["tokens_out"]})
    return write_tables(out, rows, questions, answers, incomplete) + tokens


def read_prompt(name: str) -> str:
    """A built-in prompt by name, or a file. Raises UserError."""
    ours = {path.stem: path for path in PROMPTS.glob("*.txt")}
    path = ours.get(name, Path(name))
    if not path.is_file():
        raise UserError(f"--prompt {name!r}: neither a file nor one of {', '.join(sorted(ours))}")
    return path.read_text(encoding="utf-8").strip()


def question_of(prompt: str, row: Row) -> str:
    """The prompt filled with a row's texts. Raises UserError for a text that the row does not have."""
    words = {"caption": " ".join(row.captions), **row.meta}
    try:
        return prompt.format_map(words)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise UserError(
            f"{row.where}: the prompt asks for {error}, but the row has {', '.join(sorted(words))}"
        ) from error


def write_tables(
    out: Path,
    rows: Sequence[Row],
    questions: Sequence[str],
    answers: Mapping[str, Mapping[str, Any]],
    incomplete: Sequence[Row],
) -> Counter[str]:
    """Writes the table and the rejected answers, in the order of the rows, after the incomplete rows; counts faults, `good`
    and `failed`."""
    counts = Counter({"rejected: incomplete": len(incomplete)} if incomplete else {})
    good: list[str] = []
    bad = [json.dumps({"id": row.id, "rejected": "incomplete", "reason": row.fault}) + "\n" for row in incomplete]
    for row, question in zip(rows, questions, strict=True):
        if question not in answers:
            counts["failed"] += 1
            continue
        answer = clean(answers[question]["answer"])
        fault = "cut_off" if answers[question].get("cut") else fault_of(answer)
        counts[f"rejected: {fault}" if fault else "good"] += 1
        fields: dict[str, Any] = {**row.meta, **row.images, "id": row.id, "split": row.split}
        fields |= {"rejected": fault, "answer": answer} if fault else {"captions": [answer]}
        (bad if fault else good).append(json.dumps(fields, ensure_ascii=False) + "\n")
    write_whole(out, "".join(good))
    write_whole(out.with_name(out.name + ".rejected.jsonl"), "".join(bad))
    return counts
