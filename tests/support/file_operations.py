"""What this process asks of a file system below a folder, counted by kind."""

import os
import sys
from collections import Counter
from pathlib import Path

EVENTS = {"os.listdir": "list", "os.scandir": "list", "os.mkdir": "mkdir", "os.rename": "rename"}
EVENTS |= {"os.remove": "remove", "os.rmdir": "remove"}


class FileOperations:
    """Counts Python's audit events, calls of `os.stat` and `os.lstat`, which have none, and of safetensors' `safe_open`.

    Audit hooks stay for good: make one object a process.
    """

    def __init__(self, folder: Path) -> None:
        import safetensors

        self.folder = str(folder)
        self.counts: Counter[str] = Counter()
        sys.addaudithook(self._heard)
        for module, name, what in ((os, "stat", "stat"), (os, "lstat", "stat"), (safetensors, "safe_open", "open")):
            setattr(module, name, self._counting(getattr(module, name), what))

    def taken(self) -> dict[str, int]:
        """The counts since the last call."""
        counts, self.counts = dict(self.counts), Counter()
        return counts

    def _counting(self, function, what: str):
        def counted(path, *words, **more):
            self._note(what, path)
            return function(path, *words, **more)

        return counted

    def _heard(self, event: str, words: tuple) -> None:
        if event == "open":
            self._note("create" if words[2] & os.O_CREAT else "open", words[0])
        elif event in EVENTS:
            beside = words[1] if event == "os.remove" else -1  # rmtree names files beside the folder's descriptor
            self._note(EVENTS[event], words[0] if beside == -1 else beside)

    def _note(self, what: str, path) -> None:
        path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fsdecode(path)
        if path.startswith(self.folder):
            self.counts[what] += 1
