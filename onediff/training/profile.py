"""Traces a phase's steps with torch's profiler, one file per rank."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, record_function, schedule
from torch.profiler import profile as torch_profile

from onediff.config.profile import ProfileConfig
from onediff.training.phase import Phase
from onediff.training.stop import Stopped

log = logging.getLogger(__name__)


@contextmanager
def profiled(phase: Phase) -> Iterator[None]:
    """Traces the steps of `phase` that `training.profile` selects, if any. Collective."""
    config = phase.training.profile
    if config is None:
        yield
        return
    folder = phase.folder.path / config.where / f"phase-{phase.name}"
    with Profile(config, folder, phase.rank, phase.tracker) as profile:
        phase.around_step = profile.step
        yield


class Profile:
    """Traces `config.steps` steps of one phase after the first `config.wait`, once per start.

    The traces open in https://ui.perfetto.dev. Each step is a span called `step N`, by its number in the phase. Recording
    slows down the traced steps without changing any results, and costs nothing for other steps.
    """

    def __init__(self, config: ProfileConfig, folder: Path, rank: int, tracker: Any) -> None:
        """`tracker` is the phase's, on rank 0 only."""
        self.config = config
        self.folder = folder
        self.rank = rank
        self.tracker = tracker
        self.begun = 0
        """steps since the start"""
        self.traced: list[int] = []
        """numbers of the traced steps"""
        self.written: Path | None = None
        self.torch: torch_profile | None = torch_profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])],
            # One warm-up step, if `wait` leaves room for it: starting CUPTI takes seconds.
            schedule=schedule(wait=max(0, config.wait - 1), warmup=min(1, config.wait), active=config.steps, repeat=1),
            on_trace_ready=self._write,
        )

    def __enter__(self) -> Profile:
        assert self.torch is not None
        self.torch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.torch is None:
            return
        self.torch.stop()
        self.torch = None
        if not self.traced:
            log.warning("training.profile: the phase ended after %d steps, before tracing began", self.begun)
        elif kind is None or issubclass(kind, Stopped):  # every rank is here
            self._share()

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """A context around step `number`. Collective after the last traced step."""
        if self.torch is None:
            yield
            return
        if self.begun >= self.config.wait:
            self.traced.append(number)
        with record_function(f"step {number}"):
            yield
        self.begun += 1
        self.torch.step()
        if len(self.traced) == self.config.steps:
            self.torch.stop()
            self.torch = None
            self._share()

    def _write(self, done: torch_profile) -> None:
        """Writes the trace; an error must not end the training."""
        folder = self.folder / f"steps-{self.traced[0]}-to-{self.traced[-1]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            done.export_chrome_trace(str(folder / f"rank-{self.rank:04d}.json.gz"))
        except (OSError, RuntimeError) as error:
            log.warning("training.profile: %s cannot be written: %s", folder, error)
            return
        self.written = folder

    def _share(self) -> None:
        """Passes all ranks' traces to the tracker. Collective."""
        dist.barrier()
        if self.rank == 0 and self.written is not None:
            log.info("traces of steps %d to %d are in %s", self.traced[0], self.traced[-1], self.written)
            self.tracker.artifact(self.written, f"profile/{self.written.name}")
