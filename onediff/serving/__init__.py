"""Captions over HTTP: a page, an OpenAI-compatible endpoint and metrics."""
