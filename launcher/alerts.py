"""Send alerts about a run to a webhook or a site's own command.

The supervisor sends them from a thread, so nothing waits for them; a failure to send is a line in the job's log. At most
one alert of each kind goes out every `minutes` minutes, and the next one says how many were suppressed. Secrets are masked.

Standard library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
import urllib.request
from collections.abc import Sequence

from launcher.record import Json
from launcher.say import say
from onediff.tracking.scrub import scrubbed

EVENTS = ("failure", "hang", "restart", "spike", "no progress", "end")
SECONDS = 10.0
"""Seconds to wait for a receiver."""


class Alerts:
    """The alerts of one supervisor."""

    def __init__(self, wish: Json, run: str, phase: str) -> None:
        """`wish` is the profile's `alerts`."""
        self.webhook, self.command = wish.get("webhook"), wish.get("command")
        self.events: Sequence[str] = wish.get("events") or EVENTS
        self.pause = 60.0 * float(wish.get("minutes", 0))
        self.run, self.phase = run, phase
        self.sent: dict[str, float] = {}
        self.held: dict[str, int] = {}
        self.threads: list[threading.Thread] = []

    def tell(self, event: str, text: str) -> None:
        """Send `text` unless an alert of this kind was sent recently. Returns immediately."""
        assert event in EVENTS, event
        if event not in self.events or not (self.webhook or self.command):
            return
        now = time.monotonic()
        if event in self.sent and now - self.sent[event] < self.pause:
            self.held[event] = self.held.get(event, 0) + 1
            return
        self.sent[event] = now
        held = self.held.pop(event, 0)
        more = f" ({held} more since the last one)" if held else ""
        words = scrubbed(f"{self.run}, phase {self.phase}: {text}{more}")
        told = {"text": f"OneDiff {event}: {words}", "event": event, "run": self.run, "phase": self.phase}
        thread = threading.Thread(target=self._send, args=(json.dumps(told).encode(),), daemon=True)
        thread.start()
        self.threads.append(thread)

    def finish(self) -> None:
        """Wait for alerts that are still being sent."""
        for thread in self.threads:
            thread.join(SECONDS)

    def _send(self, body: bytes) -> None:
        try:
            if self.webhook:
                headers = {"Content-Type": "application/json"}
                request = urllib.request.Request(address(self.webhook), body, headers)
                urllib.request.urlopen(request, timeout=SECONDS).close()
            if self.command:
                subprocess.run(self.command, input=body, timeout=SECONDS, check=True, stdout=subprocess.DEVNULL)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            say(f"alert not sent: {scrubbed(str(error))}")


def address(webhook: str) -> str:
    """The URL, or the value of the variable `$NAME`: a URL that contains a token does not belong in a file."""
    return os.environ.get(webhook[1:], "") if webhook.startswith("$") else webhook
