"""Captions per second of `onediff serve` with one client and with many, and the memory of its process under load.

    python benchmarks/serving.py MODEL [--clients 32] [--requests 128] [--rounds 5]

Prints one JSON line for each number of clients, then one for each round of 200 requests at once, every fourth of them bad.
Requests are pairs of noise of 256 × 256 pixels, sent over loopback by threads of the same process.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
from PIL import Image

import onediff
from onediff.serving.server import CaptionServer


def request(noise: np.random.Generator) -> bytes:
    """The body of a chat completion about two images."""
    parts = []
    for _ in range(2):
        out = io.BytesIO()
        Image.fromarray(noise.integers(0, 255, (256, 256, 3), np.uint8)).save(out, "JPEG")
        url = "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return json.dumps({"messages": [{"role": "user", "content": parts}], "max_tokens": 32}).encode()


def ask(port: int, body: bytes) -> float:
    """Seconds to the answer."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/v1/chat/completions", body)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    answer.read()
    return time.perf_counter() - began


def load(port: int, bodies: list[bytes]) -> dict[str, object]:
    """200 requests at once, every fourth of them bad: what was answered, and the resident memory afterwards."""
    bad = [b"{}", bodies[0][:-40], bodies[0].replace(b"base64,", b"base64,AAAA")]

    def status(number: int) -> int:
        body = bad[number // 4 % len(bad)] if number % 4 == 0 else bodies[number % len(bodies)]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        connection.request("POST", "/v1/chat/completions", body)
        return connection.getresponse().status

    with ThreadPoolExecutor(200) as pool:
        statuses = Counter(pool.map(status, range(200)))
    return {"statuses": statuses, "resident_mib": psutil.Process().memory_info().rss >> 20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    noise = np.random.default_rng(0)
    bodies = [request(noise) for _ in range(args.requests)]
    with CaptionServer(onediff.load(args.model), 0, max_batch=args.clients) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ask(server.server_port, bodies[0])  # what is loaded at first use
        for clients in (1, args.clients):
            before, began = server.batcher.counts.batches, time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                seconds = list(pool.map(lambda body: ask(server.server_port, body), bodies))
            took = time.perf_counter() - began
            told = {"clients": clients, "captions_per_second": round(len(bodies) / took, 2)}
            told |= {"batches": server.batcher.counts.batches - before}
            told |= {f"p{at}_seconds": round(float(np.percentile(seconds, at)), 3) for at in (50, 95)}
            print(json.dumps(told), flush=True)
        for number in range(1, args.rounds + 1):
            print(json.dumps({"round": number, **load(server.server_port, bodies)}), flush=True)
        server.shutdown()


if __name__ == "__main__":
    main()
