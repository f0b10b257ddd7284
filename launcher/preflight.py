"""Check in seconds whether this node is fit for ranks: GPUs, memory, disk, the shared folder, messages to the next node.

    python -m launcher.preflight NOTES LIMITS_JSON

Runs as one task per node under srun. Each node writes `NOTES/<node>.json` with its `faults` and always exits 0: the
supervisor decides. Standard library only, so that a broken environment is a finding and not a crash.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from launcher.record import Json, glimpse, names_in, own_mark, write_json
from launcher.task import node_name
from onediff.ranks import Ranks, expand_nodes

ROUNDS = 20
BULK = 1 << 24
"""Bytes sent at once to measure bandwidth."""
GIB = 1 << 30


def main(notes: Path, limits: Json) -> None:
    """Check this node and record its faults."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a warning from Slurm during the check is not the node's fault
    place = Ranks.from_environment()
    faults = [*gpu_faults(int(limits["gpus"])), *memory_faults(limits["free_memory_gb"])]
    for folder in filter(None, (limits["run"], limits.get("scratch"))):
        faults += disk_faults(Path(folder), limits["free_disk_gb"])
    if limits.get("data"):
        faults += data_faults(Path(limits["data"]))
    measured: Json = {
        "summary": summary(),
        "driver": gpu_driver(),
        "mlflow": mlflow_answer(),
        "port": place.master_port,
    }
    if place.world > 1:
        nodes = expand_nodes(os.environ["SLURM_STEP_NODELIST"])
        way, found = ring(place, nodes, float(limits["seconds"]) / 2, limits["latency_ms"])
        measured |= way
        faults += found
    write_json(notes / f"{node_name()}.json", {"node": node_name(), "faults": faults, **measured})


def gpu_faults(wanted: int) -> list[str]:
    """Faults of GPUs: missing, unreachable for the driver, or with memory errors."""
    if not wanted:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or os.environ.get("SLURM_STEP_GPUS") or ""
    given = len([word for word in visible.split(",") if word])
    if given < wanted:
        return [f"Slurm assigned {given} of {wanted} GPUs"]
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=index,ecc.errors.uncorrected.volatile.total", "--format=csv,noheader"]
        try:
            done = subprocess.run(query, capture_output=True, text=True, timeout=30)
        except subprocess.TimeoutExpired:
            return ["nvidia-smi does not answer"]
        if done.returncode:
            return [f"nvidia-smi: {' '.join((done.stdout or done.stderr).split())[:200]}"]
        rows = [line.split(", ") for line in done.stdout.splitlines()]
        bad = [row[0] for row in rows if len(row) > 1 and row[1].isdecimal() and int(row[1])]
        return [f"GPU {index} has uncorrected memory errors" for index in bad]
    return []


def memory_faults(least_gb: float) -> list[str]:
    """Faults of memory: too little is available."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024 / GIB
    return [f"{free:.1f} GiB of memory available, {least_gb:g} required"] if free < least_gb else []


def disk_faults(folder: Path, least_gb: float) -> list[str]:
    """Faults of a folder: missing, not writable, or full."""
    probe = folder / f".tmp-preflight-{own_mark()}"
    try:
        probe.write_text("writable")
        probe.unlink()
        free = shutil.disk_usage(folder).free / GIB
    except OSError as error:
        return [f"{folder}: {error.strerror}"]
    return [f"{folder}: {free:.1f} GiB free, {least_gb:g} required"] if free < least_gb else []


def data_faults(folder: Path) -> list[str]:
    """Faults of the data: shards that this node cannot read."""
    shards = sorted(folder.rglob("*.tar"))
    if not shards:
        return [f"{folder}: no shards found"]
    for shard in shards:
        try:
            with shard.open("rb") as file:
                file.read(512)
        except OSError as error:
            return [f"{shard}: {error.strerror}"]
    return []


def summary() -> str:
    """Kernel, CPUs and GPUs of this node in one line."""
    names = asked("name")
    gpus = f", {len(names)} × {names[0]}" if names else ""
    return f"Linux {os.uname().release}, {os.cpu_count()} CPUs{gpus}"


def gpu_driver() -> str | None:
    """Version of the GPU driver, or None if there is none."""
    return next(iter(asked("driver_version")), None)


def asked(field: str) -> list[str]:
    """A field of nvidia-smi for each GPU; empty if nvidia-smi is missing or does not answer."""
    query = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.splitlines()
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return []


def mlflow_answer() -> str | None:
    """Whether the environment's MLflow server accepts connections from this node."""
    address = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if address.scheme not in ("http", "https") or not address.hostname:
        return None
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout=5).close()
    except OSError as error:
        return str(error.strerror or error)
    return "reachable"


def ring(place: Ranks, nodes: list[str], seconds: float, most_ms: float) -> tuple[Json, list[str]]:
    """Exchange messages with the next and the previous node. Returns the measurements and the faults."""
    deadline = time.monotonic() + seconds
    after = nodes[(place.rank + 1) % place.world]
    with socket.create_server(("", place.master_port), reuse_port=False) as server:
        try:
            to = connected(after, place.master_port, deadline)
        except OSError as error:
            return {"suspect": after}, [f"no connection to {after}: {error.strerror or error}"]
        with to:
            server.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                back, _ = server.accept()
            except TimeoutError:
                return {}, []  # the previous node is at fault and reports it itself
            with back:
                return timed(to, back, after, deadline, most_ms)


def connected(host: str, port: int, deadline: float) -> socket.socket:
    """Connect to a node that may not be listening yet."""
    while True:
        try:
            made = socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic()))
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made


def timed(
    to: socket.socket, back: socket.socket, after: str, deadline: float, most_ms: float
) -> tuple[Json, list[str]]:
    """Measure round trips to the next node, which answers with its clock; a thread answers the previous node meanwhile."""
    import threading

    for end in (to, back):
        end.settimeout(max(0.1, deadline - time.monotonic()))
    back.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def echo() -> None:
        try:
            while word := back.recv(BULK):
                if word[-1:] != b"-":  # bulk data: only its last byte is answered
                    back.sendall(b"%.6f" % time.time())
        except OSError:
            return  # the other side judges its own connection

    thread = threading.Thread(target=echo, daemon=True)
    thread.start()
    trips, offsets = [], []
    try:
        for _ in range(ROUNDS):
            began = time.perf_counter()
            to.sendall(b"x")
            sent, told = time.time(), to.recv(64)
            if not told:
                return {"suspect": after}, [f"{after} closed the connection"]
            trips.append((time.perf_counter() - began) * 1000)
            offsets.append((float(told) - (sent + time.time()) / 2) * 1000)
        began = time.perf_counter()
        to.sendall(b"-" * BULK + b"x")
        to.recv(64)
        pace = BULK / (time.perf_counter() - began) / 1e6
        to.shutdown(socket.SHUT_WR)
    except OSError as error:
        return {"suspect": after}, [f"messages to {after}: {error.strerror or error}"]
    thread.join(max(0.1, deadline - time.monotonic()))
    middle = sorted(trips)[len(trips) // 2]
    faults = [f"{middle:.1f} ms round trip to {after}, {most_ms:g} allowed"] if middle > most_ms else []
    clock = min((abs(offset), offset) for offset in offsets)[1]
    measured: Json = {"next": after, "latency_ms": round(middle, 3), "clock_ms": round(clock, 3)}
    measured["mb_per_second"] = round(pace, 1)
    return {**measured, **({"suspect": after} if faults else {})}, faults


def read_findings(folder: Path) -> list[Json]:
    """The findings of every node that wrote some, sorted by node name."""
    notes = [glimpse(folder / name) for name in names_in(folder) if name.endswith(".json") and name[0] != "."]
    return [note for note in notes if note.keys() >= {"node", "faults"}]


def verdict(notes: list[Json], nodes: list[str]) -> dict[str, str]:
    """Unfit nodes and why. A faulty connection to a neighbour counts against the neighbour."""
    heard = {note["node"] for note in notes}
    unfit = {node: "did not answer the pre-flight check in time" for node in nodes if node not in heard}
    unfit |= {note["node"]: "; ".join(note["faults"]) for note in notes if note["faults"] and "suspect" not in note}
    for note in notes:
        if "suspect" in note and note["node"] not in unfit:
            unfit.setdefault(note["suspect"], f"{note['node']}: {'; '.join(note['faults'])}")
    return unfit


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
