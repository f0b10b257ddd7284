"""A client for language models behind an OpenAI-compatible endpoint, with a cache of answers on disk."""

from onediff.llm.cache import Cache
from onediff.llm.client import Asker

__all__ = ["Asker", "Cache"]
