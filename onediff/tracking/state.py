"""How far the journals have been sent, in `<run>/tracking/sent.json`. Lost or stale, it costs sending again, never data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from onediff.tracking.journal import put


@dataclass
class Sent:
    """One stream: its MLflow run and what of the journal is in it."""

    run_id: str = ""
    offset: int = 0
    """Bytes of the journal that are in MLflow."""
    through: int = -1
    """Highest step that is in MLflow: a restart from below it means that the MLflow run must be replaced."""
    marked: list[int] = field(default_factory=list)
    """Steps that already carry a restart marker."""


@dataclass
class State:
    """All streams of a run, for one MLflow store and experiment."""

    run: Path
    where: str = ""
    streams: dict[str, Sent] = field(default_factory=dict)

    @classmethod
    def load(cls, run: Path) -> State:
        """The state in the run folder, or an empty one."""
        path = run / "tracking" / "sent.json"
        try:
            known = json.loads(path.read_text())
            return cls(run, known["where"], {name: Sent(**sent) for name, sent in known["streams"].items()})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return cls(run)

    def save(self) -> None:
        """Writes the state aside and renames it."""
        streams = {name: asdict(sent) for name, sent in self.streams.items()}
        put(self.run / "tracking" / "sent.json", json.dumps({"where": self.where, "streams": streams}, indent=1))

    def sent(self, stream: str) -> Sent:
        """What is known about one stream."""
        return self.streams.setdefault(stream, Sent())

    def waiting(self) -> dict[str, int]:
        """Bytes of each journal that are not in MLflow yet, for those that have any."""
        sizes = {path.stem: path.stat().st_size for path in journals(self.run)}
        left = {name: size - (self.streams[name].offset if name in self.streams else 0) for name, size in sizes.items()}
        return {name: size for name, size in left.items() if size > 0}

    def unsent(self) -> str:
        """What is waiting, in words, or nothing."""
        left = self.waiting()
        lines = 0
        for name in left:
            with open(self.run / "tracking" / f"{name}.jsonl", "rb") as file:
                file.seek(self.streams[name].offset if name in self.streams else 0)
                lines += sum(1 for _ in file)
        return f"{lines} records of {', '.join(sorted(left))}" if left else ""


def journals(run: Path) -> list[Path]:
    """The journals of a run: its own first, then phases and evaluations, then nodes."""
    order = {"run": 0, "phase": 1, "evaluation": 2, "node": 3}
    found = (run / "tracking").glob("*.jsonl")
    return sorted(found, key=lambda path: (order.get(path.stem.split("-")[0], 9), path.name))
