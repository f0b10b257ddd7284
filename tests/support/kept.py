"""Keepers of copies in memory, each a process that stands for a node, with folders on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOKEN = "a token"


class KeptNodes:
    """Nodes below `folder`, whose names are those of their folders: `onediff-<name>`."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.keepers: dict[str, subprocess.Popen[str]] = {}
        self.told: dict[str, dict] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            self.start(name)

    def place(self, name: str) -> Path:
        return self.folder / f"onediff-{name}"

    def start(self, name: str) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "launcher.keeper", str(self.place(name)), "lo"],
            env={**os.environ, "SLURMD_NODENAME": name, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.keepers[name], self.told[name] = process, json.loads(process.stdout.readline())

    def link(self, *ring: str) -> None:
        """Says which nodes the attempt has, and waits until all have heard it."""
        addresses = {name: (name, told["host"], told["port"]) for name, told in self.told.items()}
        words = {"token": TOKEN, "ring": [addresses[name] for name in ring], "all": list(addresses.values())}
        for process in self.keepers.values():
            process.stdin.write(json.dumps(words) + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline()) == {"linked": list(ring)}

    def lose(self, name: str) -> None:
        """The node and what it held are gone."""
        process = self.keepers.pop(name)
        self.told.pop(name)
        process.kill()
        process.wait()
        self.start(name)  # removes what the killed one left
        self.end(name)

    def end(self, *names: str) -> None:
        for name in names or list(self.keepers):
            self.keepers[name].stdin.close()
            assert self.keepers.pop(name).wait(10) == 0
            self.told.pop(name)
