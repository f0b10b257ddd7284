"""The newest pairs for which users made a link, in memory only."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict


class KeptPairs:
    """Pairs of image files by name. Once they exceed `most_bytes`, the oldest are dropped."""

    def __init__(self, most_bytes: int = 256_000_000) -> None:
        self.most_bytes = most_bytes
        self.pairs: OrderedDict[str, tuple[bytes, bytes]] = OrderedDict()
        self.bytes = 0
        self.lock = threading.Lock()

    def keep(self, before: bytes, after: bytes) -> str:
        """Keeps a pair and returns its name, which cannot be guessed."""
        name = secrets.token_urlsafe(12)
        with self.lock:
            self.pairs[name] = before, after
            self.bytes += len(before) + len(after)
            while self.bytes > self.most_bytes and len(self.pairs) > 1:
                _, dropped = self.pairs.popitem(last=False)
                self.bytes -= sum(map(len, dropped))
        return name

    def get(self, name: str) -> tuple[bytes, bytes] | None:
        """The pair of this name, or None if it was dropped or never kept."""
        return self.pairs.get(name)
