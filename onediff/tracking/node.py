"""System metrics of one node: processors, memory, disk, network, and GPUs if there are any.

Every node writes its own journal into the run folder, and the sender of rank 0 sends them all, so only one node needs access
to MLflow. The step of a system metric is the second since the run first started, so restarts never collide.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from onediff.config.tracking import TrackingConfig
from onediff.tracking.journal import Journal, last

LOG = logging.getLogger(__name__)
MEGA = 1e6


class NodeMetrics:
    """Samples the node's metrics in a thread until `stop`. Start one on local rank 0 of every node. Never raises."""

    def __init__(self, run_dir: str | os.PathLike[str], config: TrackingConfig, host: str | None = None) -> None:
        self.run = Path(run_dir).resolve()
        self.host = re.sub(r"[^\w.-]", "_", host or socket.gethostname())
        self.seconds = config.system_seconds
        self.bound = config.queue_records
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._follow, name="onediff-node-metrics", daemon=True)

    def start(self) -> NodeMetrics:
        """Starts; returns itself."""
        self.thread.start()
        return self

    def stop(self) -> None:
        """Ends the thread; waits at most two seconds for it."""
        self.ended.set()
        self.thread.join(2.0)

    def _follow(self) -> None:
        try:
            gpus = Gpus()
            journal, begun = self._begin(gpus)
            if journal is None:
                return
            before = last(journal.path, "metrics")
            step = before["step"] if before else -1
            meters = Meters(self.run)
            while not self.ended.wait(self.seconds):
                # Steps must not decrease when clocks differ or are set back.
                step = max(step + 1, int(time.time()) - begun)
                named = {**meters.read(), **gpus.read()}
                journal.append(
                    {"step": step, "metrics": {f"system/{self.host}/{name}": value for name, value in named.items()}}
                )
            journal.close()
        except Exception as error:  # metrics depend on kernel and container, and a failure must not end training
            LOG.warning("tracking: no system metrics from %s: %s: %s", self.host, type(error).__name__, error)

    def _begin(self, gpus: Gpus) -> tuple[Journal | None, int]:
        """The node's journal and the time at which the run first started, once rank 0 has created the run's identity."""
        identity = self.run / "tracking" / "run.json"
        while not identity.exists():
            if self.ended.wait(min(self.seconds, 1.0)):
                return None, 0
        journal = Journal(self.run / "tracking" / f"node-{self.host}.jsonl", self.bound)
        memory = psutil.virtual_memory().total / 2**30
        what = f"{psutil.cpu_count()} processors, {memory:.0f} GiB, {', '.join(gpus.names) or 'no GPU'}"
        journal.append({"node": self.host, "what": what})
        return journal, int(json.loads(identity.read_text())["created"])


class Meters:
    """Processors, memory, disk and network; rates are means since the last reading."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        psutil.cpu_percent()
        self.before = self._counters()

    def read(self) -> dict[str, float]:
        """Current values, under MLflow's names for them, and rates in MB/s."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self.folder))
        now, before = self._counters(), self.before
        self.before = now
        span = max(now["time"] - before["time"], 1e-3)
        # A counter that fell was reset, by a removed device or a restarted driver, and gives no rate.
        rates = {
            f"{name}_megabytes_per_second": (now[name] - before[name]) / MEGA / span
            for name in now.keys() & before.keys() - {"time"}
            if now[name] >= before[name]
        }
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGA,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "disk_available_megabytes": disk.free / MEGA,
            **rates,
        }

    @staticmethod
    def _counters() -> dict[str, float]:
        network, disk = psutil.net_io_counters(), psutil.disk_io_counters()
        found: dict[str, float] = {"time": time.monotonic()}
        if network is not None:
            found |= {"network_receive": network.bytes_recv, "network_transmit": network.bytes_sent}
        if disk is not None:
            found |= {"disk_read": disk.read_bytes, "disk_write": disk.write_bytes}
        return found


class Gpus:
    """Every NVIDIA GPU of the node, by pynvml; empty if pynvml or the driver is missing."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.handles: list[Any] = []
        try:
            import pynvml
        except ModuleNotFoundError:
            return
        self.nvml = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return
        self.handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        names = [pynvml.nvmlDeviceGetName(handle) for handle in self.handles]
        self.names = [name.decode() if isinstance(name, bytes) else name for name in names]

    def read(self) -> dict[str, float]:
        """Utilisation, memory, power and temperature of each GPU, as far as it reports them."""
        found: dict[str, float] = {}
        for index, handle in enumerate(self.handles):
            for meter in (self._use, self._memory, self._power, self._temperature):
                with contextlib.suppress(self.nvml.NVMLError):  # a MIG slice, for example, reports no power
                    found |= {f"gpu_{index}_{name}": value for name, value in meter(handle).items()}
        return found

    def _use(self, handle: Any) -> dict[str, float]:
        return {"utilization_percentage": self.nvml.nvmlDeviceGetUtilizationRates(handle).gpu}

    def _memory(self, handle: Any) -> dict[str, float]:
        memory = self.nvml.nvmlDeviceGetMemoryInfo(handle)
        share = 100 * memory.used / memory.total
        return {"memory_usage_megabytes": memory.used / MEGA, "memory_usage_percentage": share}

    def _power(self, handle: Any) -> dict[str, float]:
        return {"power_usage_watts": self.nvml.nvmlDeviceGetPowerUsage(handle) / 1000}

    def _temperature(self, handle: Any) -> dict[str, float]:
        return {"temperature_celsius": self.nvml.nvmlDeviceGetTemperature(handle, 0)}
