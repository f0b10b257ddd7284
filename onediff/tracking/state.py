"""How far the journals have been sent, in `<run>/tracking/sent.json`. Without it records are sent again; none is lost."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onediff.atomic import write_whole


@dataclass
class Parcel:
    """An artifact, a data set or a model that is not in MLflow yet; it is sent apart from the points."""

    what: str
    """Its name in messages."""
    tries: int = 0
    """Tries without progress."""
    why: str = ""
    """Where the last try went, and what failed."""
    due: float = 0.0
    """Time of the next try, in seconds since 1970."""
    there: dict[str, str] = field(default_factory=dict)
    """Its files that have arrived, with their size and time."""
    model_id: str = ""
    """Id of the logged model that was started for a model."""


@dataclass
class Sent:
    """One stream: its MLflow run and how much of the journal is in it."""

    run_id: str = ""
    offset: int = 0
    """Bytes of the journal that are in MLflow, except for the parcels."""
    through: int = -1
    """Highest step in MLflow; after a restart from before it, the MLflow run must be replaced."""
    marked: list[int] = field(default_factory=list)
    """Steps that already carry a restart marker."""
    parcels: dict[str, Parcel] = field(default_factory=dict)
    """Parcels in those bytes that are not in MLflow yet, by the offset of their record."""

    @classmethod
    def of(cls, known: dict[str, Any]) -> Sent:
        """The inverse of `asdict`."""
        parcels = {place: Parcel(**parcel) for place, parcel in known.get("parcels", {}).items()}
        return cls(**{**known, "parcels": parcels})


@dataclass
class State:
    """All streams of a run, for one MLflow store and experiment. One thread sends points, another parcels."""

    run: Path
    where: str = ""
    streams: dict[str, Sent] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)
    """Held while parcels are added or removed, and while the file is written."""

    @classmethod
    def load(cls, run: Path) -> State:
        """The state in the run folder, or an empty one."""
        path = run / "tracking" / "sent.json"
        try:
            known = json.loads(path.read_text())
            return cls(run, known["where"], {name: Sent.of(sent) for name, sent in known["streams"].items()})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return cls(run)

    def save(self) -> None:
        """Writes the state to a temporary file and renames it."""
        with self.lock:
            streams = {name: asdict(sent) for name, sent in self.streams.items()}
            state = {"where": self.where, "streams": streams}
            write_whole(self.run / "tracking" / "sent.json", json.dumps(state, indent=1))

    def sent(self, stream: str) -> Sent:
        """The state of one stream."""
        with self.lock:
            return self.streams.setdefault(stream, Sent())

    def waiting(self) -> dict[str, int]:
        """Bytes of each journal that are not in MLflow yet, for journals that have any."""
        sizes = {path.stem: path.stat().st_size for path in journals(self.run)}
        left = {name: size - (self.streams[name].offset if name in self.streams else 0) for name, size in sizes.items()}
        return {name: size for name, size in left.items() if size > 0}

    def parcels(self) -> list[tuple[str, str, Parcel]]:
        """All parcels to send, each with its stream and its offset in the journal, oldest first."""
        with self.lock:
            return [(name, place, one) for name, sent in self.streams.items() for place, one in sent.parcels.items()]

    def noted(self, parcel: Parcel, name: str, mark: str) -> None:
        """Records that a file of a parcel has arrived, with its size and time, `mark`."""
        with self.lock:
            parcel.there[name] = mark
            parcel.why = ""
            self.save()

    def on_its_way(self) -> bool:
        """Whether only parcels are left to send, and none has failed."""
        parcels = self.parcels()
        return bool(parcels) and not self.waiting() and not any(parcel.why for _, _, parcel in parcels)

    def left(self) -> dict[str, int]:
        """What `waiting` returns, and the number of parcels per stream; empty if everything is in MLflow."""
        left = self.waiting()
        for name, place, parcel in self.parcels():
            left[f"{name} {place}"] = len(parcel.there)
        return left

    def unsent(self) -> str:
        """Describes what is waiting; empty if nothing is."""
        left = self.waiting()
        lines = 0
        for name in left:
            with open(self.run / "tracking" / f"{name}.jsonl", "rb") as file:
                file.seek(self.streams[name].offset if name in self.streams else 0)
                lines += sum(1 for _ in file)
        words = [f"{lines} records of {', '.join(sorted(left))}"] if left else []
        if parcels := [parcel for _, _, parcel in self.parcels()]:
            several = f" and {len(parcels) - 3} more" if len(parcels) > 3 else ""
            why = next((f" ({parcel.what} {parcel.why})" for parcel in parcels if parcel.why), "")
            words.append(", ".join(parcel.what for parcel in parcels[:3]) + several + why)
        return "; ".join(words)


def journals(run: Path) -> list[Path]:
    """The journals of a run: its own first, then phases and evaluations, then nodes."""
    order = {"run": 0, "phase": 1, "evaluation": 2, "node": 3}
    found = (run / "tracking").glob("*.jsonl")
    return sorted(found, key=lambda path: (order.get(path.stem.split("-")[0], 9), path.name))
