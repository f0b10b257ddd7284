"""The journal: one append-only file of JSON lines per stream, in `<run>/tracking/`. It is the source of truth about a run.

A stream becomes one MLflow run: `run` is the job as submitted, `phase-<name>` a phase, `evaluation-<name>` an evaluation;
`node-<host>` carries a node's system metrics, which belong to `run`. A line has `time` (ms) and one of these keys:

    open        the stream begins or continues: {"step": resumed step, "name", "tags", "params"}; also "rollback" if it went
                back without a restart
    metrics     {"loss": 2.1, …} at "step"
    tags        {"name": "text"}
    artifact    path of a file or folder, sent to folder "to"; with "step" if it belongs to one
    dataset     {"name", "digest", "source", "samples", "context"}; with "set", its name in the configuration
    checkpoints steps of all checkpoints that "phase" has on disk
    scores_of   {"phase", "step", "data"}: the weights that the stream's metrics judge, and the data set
    model       an exported model's folder, registered as "name" with "aliases"; "trained" says what it contained then,
                "score" how good it is: {"metric", "value", "data"}
    end         status of the stream: FINISHED, FAILED or KILLED
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOG = logging.getLogger(__name__)
Record = dict[str, Any]


class Journal:
    """Appends records to one stream, each by a single write: they survive the end of the process.

    Costs about 10 µs per record. Never raises: records that cannot be written are kept in memory, at most `bound` of them,
    and retried with the next one. Does nothing once closed, or in a process forked from the one that opened it.
    """

    def __init__(self, path: Path, bound: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.owner = os.getpid()
        self.waiting: deque[bytes] = deque(maxlen=bound)
        self.dropped = 0
        self.lock = threading.Lock()
        self.complained = False
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self.file).st_size
        # A machine that crashed may have left an incomplete line, which must not corrupt the next one.
        self.torn = size > 0 and os.pread(self.file, 1, size - 1) != b"\n"

    def append(self, record: Record) -> None:
        """Adds one record and the time to the stream."""
        if os.getpid() != self.owner or self.file < 0:
            return
        record.setdefault("time", int(time.time() * 1000))
        line = json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        with self.lock:
            self.dropped += len(self.waiting) == self.waiting.maxlen
            self.waiting.append(line)
            try:
                self._write_waiting()
                self.complained = False
            except OSError as error:
                if not self.complained:
                    LOG.warning("tracking: %s cannot be written (%s); keeping records in memory", self.path, error)
                self.complained = True

    def _write_waiting(self) -> None:
        while self.waiting:
            line = b"\n" + self.waiting[0] if self.torn else self.waiting[0]
            self.torn = os.write(self.file, line) != len(line)
            if self.torn:
                raise OSError("the file system accepted only part of the line")
            self.waiting.popleft()

    def durable(self) -> None:
        """Flushes the records to disk, so that a checkpoint never survives a crash without its history."""
        if os.getpid() == self.owner and self.file >= 0:
            try:
                os.fsync(self.file)
            except OSError as error:
                LOG.warning("tracking: %s cannot be flushed (%s)", self.path, error)

    def close(self) -> None:
        """Closes the file; records that could never be written are lost, with a warning."""
        lost = len(self.waiting) + self.dropped
        if lost and os.getpid() == self.owner:
            LOG.warning("tracking: %d records of %s could not be written", lost, self.path)
        # The file descriptor may be reused for another file, to which a late record must not be written.
        file, self.file = self.file, -1
        if file >= 0:
            os.close(file)


def read(path: Path, offset: int = 0, most: int = 1 << 20) -> Iterator[tuple[int, Record]]:
    """Complete records from byte `offset`, each with the offset after it, until about `most` bytes were read.

    A line that is not JSON (incomplete because a machine crashed) is skipped; an incomplete last line is left for the
    next call.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        end = offset + most
        while offset < end and (line := file.readline()).endswith(b"\n"):
            offset += len(line)
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield offset, record


def records(path: Path) -> Iterator[tuple[int, Record]]:
    """All records of a stream, each with the offset after it; empty for a stream that does not exist."""
    if path.exists():
        yield from read(path, 0, path.stat().st_size)


def openings(path: Path, start: int = 0) -> list[tuple[int, Record]]:
    """The `open` records of a stream after byte `start`, each with the offset after it: its first start and restarts."""
    if not path.exists():
        return []
    found, offset = [], start
    with open(path, "rb") as file:
        file.seek(start)
        for line in file:
            offset += len(line)
            # Checking the first bytes avoids parsing the metrics of a long run.
            if line.startswith(b'{"open":') and line.endswith(b"\n"):
                found.append((offset, json.loads(line)))
    return found


def last(path: Path, key: str, window: int = 1 << 16) -> Record | None:
    """The last record with `key` in the last `window` bytes of a stream."""
    if not path.exists():
        return None
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - window))
        for line in reversed(file.read().split(b"\n")):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and key in record:
                return dict(record)
    return None


def entries(record: Record) -> list[Record]:
    """Splits a record into records of one metric, tag or parameter each."""
    for kind in ("metrics", "tags"):
        if kind in record:
            return [{**record, kind: {key: value}} for key, value in record[kind].items()]
    if "open" in record:
        bare = {**record["open"], "tags": {}, "params": {}}
        parts = [{kind: {key: text}} for kind in ("tags", "params") for key, text in record["open"][kind].items()]
        return [{**record, "open": bare | part} for part in parts]
    return [record]
