"""Interprets MLflow's errors."""

from __future__ import annotations

import re

from mlflow.exceptions import MlflowException

from onediff.tracking.scrub import scrubbed

REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}


def refused(error: MlflowException) -> bool:
    """Whether the same request would be refused again; otherwise it can be retried."""
    return error.error_code in REFUSED


def too_large(error: MlflowException) -> bool:
    """Whether a proxy in front of MLflow rejects requests of this size."""
    return "error code 413" in str(error)


def no_such_route(error: Exception) -> bool:
    """Whether the server is older than this request."""
    old = isinstance(error, MlflowException) and error.error_code == "ENDPOINT_NOT_FOUND"
    return old or "error code 404" in str(error)


def reason(error: Exception) -> str:
    """The reason for an error, in one line without secrets."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.split(r"\.? Response (?:text|body):", text)[0]  # a page of HTML from a proxy
    return scrubbed(text if len(text) <= 240 else f"{text[:239]}…")
