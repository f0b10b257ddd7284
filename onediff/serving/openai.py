"""OpenAI's chat completions for pairs of images: parses requests and writes answers.

A request has one user message with two images, before and after, as `data:` URLs, and optionally a question other than the
one that the model was trained on (https://platform.openai.com/docs/api-reference/chat).
"""

from __future__ import annotations

import base64
import binascii
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

from onediff.errors import UserError
from onediff.evaluation.confidence import Judged

MOST_TOKENS = 256
"""Longest caption that a request may ask for."""
MOST_CHARACTERS = 4_000
"""Longest question. A model could read more, at a cost that grows with the square of the length."""


class Asked(NamedTuple):
    """One request."""

    images: tuple[bytes, bytes]
    question: str | None
    max_new_tokens: int
    stream: bool


def parsed(body: bytes) -> Asked:
    """Parses the body of a request. Raises UserError naming the field at fault."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise UserError("the body is not JSON") from None
    if not isinstance(given, dict) or not isinstance(given.get("messages"), list):
        raise UserError("messages: missing; send one user message with two images")
    users = [one for one in given["messages"] if isinstance(one, dict) and one.get("role") == "user"]
    if len(users) != 1 or len(users) != len(given["messages"]):
        raise UserError("messages: send one user message; there is no system prompt and no second turn")
    for name, taken in (("n", 1), ("temperature", 0), ("top_p", 1)):
        if given.get(name) not in (None, taken):
            raise UserError(f"{name}: decoding is greedy; only {taken} is accepted")
    # Clients send null for what they leave to the server.
    told = (given.get(name) for name in ("max_completion_tokens", "max_tokens"))
    tokens = next((value for value in told if value is not None), 64)
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not 1 <= tokens <= MOST_TOKENS:
        raise UserError(f"max_tokens: must be an integer from 1 to {MOST_TOKENS}")
    images, texts = content_of(users[0].get("content"))
    if len(images) != 2:
        raise UserError(f"messages: {len(images)} images; send two, before and after")
    return Asked((images[0], images[1]), question_of(texts), tokens, bool(given.get("stream")))


def question_of(texts: list[str]) -> str | None:
    """The texts of a message as one question; None if there is none. Raises UserError."""
    question = " ".join(texts)
    if len(question) > MOST_CHARACTERS:
        raise UserError(f"messages: a text of {len(question):,} characters; at most {MOST_CHARACTERS:,} are accepted")
    try:
        question.encode()
    except UnicodeEncodeError:
        raise UserError("messages: the text contains half a surrogate pair, which is not a character") from None
    return question or None


def content_of(content: Any) -> tuple[list[bytes], list[str]]:
    """The images and texts of a message. Raises UserError."""
    if not isinstance(content, list):
        raise UserError("messages: content is a list with two image_url parts")
    images, texts = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url" and isinstance(part.get("image_url"), dict):
            images.append(image_in(part["image_url"].get("url")))
        else:
            raise UserError(f"messages: a part of type {kind!r}; parts are text or image_url")
    return images, texts


def image_in(url: Any) -> bytes:
    """The bytes of a `data:` URL. Raises UserError for any other URL: the server fetches nothing."""
    head, _, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not head.startswith("data:") or not head.endswith(";base64"):
        raise UserError("image_url: send the image as data:image/…;base64,…; this server fetches nothing")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise UserError("image_url: not base64") from None


def completion(model: str, said: Judged, prompt_tokens: int, tokens: int, is_cut: bool) -> dict[str, Any]:
    """A complete answer. Next to the message, our own field `onediff` has what else is known."""
    message = {"role": "assistant", "content": said.caption}
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "length" if is_cut else "stop"}
    if known := {name: value for name, value in said.as_json().items() if name != "caption"}:
        choice["onediff"] = known
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
    return {**envelope(model, "chat.completion"), "choices": [choice], "usage": usage}


def chunks(whole: dict[str, Any]) -> Iterator[bytes]:
    """The answer as server-sent events. Captions are generated in batches, so the text comes in one piece."""
    choice = whole["choices"][0]
    pieces: list[tuple[dict[str, str], str | None]] = [(choice["message"], None), ({}, choice["finish_reason"])]
    for delta, reason in pieces:
        part = {**choice, "delta": delta, "finish_reason": reason}
        part.pop("message")
        event = {**whole, "object": "chat.completion.chunk", "choices": [part]}
        event.pop("usage")
        yield b"data: " + json.dumps(event).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


def envelope(model: str, kind: str) -> dict[str, Any]:
    """The fields with which every answer starts."""
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def error(status: int, message: str) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
