"""Captions per second of `onediff serve` with one client and with many, and the memory of the server under load.

  python benchmarks/serving.py runs/demo
  python benchmarks/serving.py my-model --clients 32 --requests 128 --json serving.json

Starts the server in its own process and sends requests to its OpenAI-compatible endpoint over loopback, with pairs of noise
of 256 × 256 pixels. First one client and then many send all requests, several times in turn, so that other work on the
machine affects both equally; the ratio is the median. Then each round sends 200 requests at once, every fourth of them bad,
and reads the server's resident memory. The script fails if a good request does not get a 200 or a bad one a 4xx.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from machine import machine
from PIL import Image

ROUND = 200
"""Simultaneous requests in a round of load."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="an export or a run")
    parser.add_argument("--clients", type=int, default=32, help="concurrent clients, compared with one")
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5, help="repetitions of the comparison")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of 200 requests at once")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    noise = np.random.default_rng(0)
    bodies = [question(noise) for _ in range(args.requests)]
    result: dict[str, Any] = {"machine": machine("torch"), "captions": [], "memory": []}
    with serving(args.model, args.clients) as (port, server):
        ask(port, bodies[0])  # triggers lazy loading
        for clients in (1, args.clients) * args.repeats:
            result["captions"].append(throughput(port, bodies, clients))
            print(json.dumps(result["captions"][-1]), flush=True)
        for number in range(1, args.rounds + 1):
            statuses = load(port, bodies)
            mebibytes = server.memory_info().rss / 2**20
            result["memory"].append({"round": number, "statuses": statuses, "resident_mib": round(mebibytes, 1)})
            print(json.dumps(result["memory"][-1]), flush=True)
    speeds = [found["captions_per_second"] for found in result["captions"]]
    ratios = (many / one for one, many in zip(speeds[::2], speeds[1::2], strict=True))
    result["ratio"] = round(statistics.median(ratios), 2)
    print(f"{args.clients} clients together get {result['ratio']} times as many captions as one")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


@contextmanager
def serving(model: str, batch: int) -> Iterator[tuple[int, psutil.Process]]:
    """The port and process of a server, which is stopped at the end of the block."""
    command = [sys.executable, "-m", "onediff", "serve", model, "--port", "0", "--max-batch", str(batch)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r":(\d+)/", process.stdout.readline())
            if found is None:
                raise SystemExit("the server did not start")
            yield int(found[1]), psutil.Process(process.pid)
        finally:
            process.terminate()


def question(noise: np.random.Generator) -> bytes:
    """The body of a chat completion about two images."""
    parts = []
    for _ in range(2):
        out = io.BytesIO()
        Image.fromarray(noise.integers(0, 255, (256, 256, 3), np.uint8)).save(out, "JPEG")
        url = "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return json.dumps({"messages": [{"role": "user", "content": parts}], "max_tokens": 32}).encode()


def ask(port: int, body: bytes) -> int:
    """The status of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request("POST", "/v1/chat/completions", body)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def throughput(port: int, bodies: list[bytes], clients: int) -> dict[str, Any]:
    """Captions per second and how long each took, with that many clients at once."""

    def timed(body: bytes) -> float:
        began = time.perf_counter()
        status = ask(port, body)
        assert status == 200, status
        return time.perf_counter() - began

    began, batches = time.perf_counter(), counted(port, "batches")
    with ThreadPoolExecutor(clients) as pool:
        seconds = list(pool.map(timed, bodies))
    found = {"clients": clients, "captions_per_second": round(len(bodies) / (time.perf_counter() - began), 2)}
    found["batches"] = counted(port, "batches") - batches
    return found | {f"p{at}_seconds": round(float(np.percentile(seconds, at)), 3) for at in (50, 95)}


def counted(port: int, name: str) -> int:
    """A counter of `/metrics`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return int(re.search(rf"^onediff_{name}_total (\d+)$", text, re.MULTILINE)[1])  # type: ignore[index]


def load(port: int, bodies: list[bytes]) -> dict[int, int]:
    """How often each status came back for 200 requests at once, every fourth of them bad."""
    bad = [b"{}", bodies[0][:-40], bodies[0].replace(b"base64,", b"base64,AAAA")]

    def status(number: int) -> int:
        is_bad = number % 4 == 0
        found = ask(port, bad[number // 4 % len(bad)] if is_bad else bodies[number % len(bodies)])
        if found // 100 != (4 if is_bad else 2):
            raise SystemExit(f"a {'bad' if is_bad else 'good'} request got {found}")
        return found

    with ThreadPoolExecutor(ROUND) as pool:
        return dict(Counter(pool.map(status, range(ROUND))))


if __name__ == "__main__":
    main()
