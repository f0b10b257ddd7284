"""Language models behind an OpenAI-compatible endpoint: asked many questions, answers kept on disk."""

from onediff.llm.cache import Cache
from onediff.llm.client import Asker

__all__ = ["Asker", "Cache"]
