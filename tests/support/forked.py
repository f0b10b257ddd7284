"""Processes that are forked from one that has imported torch, DeepSpeed and transformers already.

Importing them takes more than three seconds of CPU time per rank, most of the cost of a small test. A forked process is a
process like any other, with its own id, signals, environment, working directory and output. Code that reads the environment
on import needs a fresh interpreter and is started with `subprocess` instead.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from multiprocessing.resource_tracker import _resource_tracker
from pathlib import Path
from types import SimpleNamespace

from launcher import local

PRELOADED = ["onediff.training.run", "onediff.evaluation.run", "onediff.runs.folder", "launcher.local"]
PRELOADED += ["transformers.models.clip.modeling_clip", "transformers.models.llama.modeling_llama"]
PRELOADED += ["deepspeed.ops.op_builder.all_ops", "PIL.JpegImagePlugin", "PIL.PngImagePlugin"]
# A model that is made on the meta device, as by every phase but the first, imports torch's compiler: 2 s of a processor.
PRELOADED += ["torch._dynamo"]
POSSIBLE = not Path("/dev/nvidiactl").exists()
"""Not beside a GPU: what has been imported has already chosen its device."""

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(PRELOADED)


class Forked:
    """One forked process, with as much of `subprocess.Popen` as tests use."""

    def __init__(self, process: ForkServerProcess, words: Sequence[str]) -> None:
        self.process, self.args, self.pid = process, list(words), process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    poll = returncode.fget

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, -N after signal N. Raises subprocess.TimeoutExpired."""
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    words: Sequence[str], environment: Mapping[str, str], output: Path, errors: Path, cwd: Path | None = None
) -> Forked | subprocess.Popen[bytes]:
    """Starts Python with `words` (`-m onediff train …`, or a script and its arguments); both outputs are files."""
    folder = str(cwd or Path.cwd())
    if not POSSIBLE:
        with output.open("ab") as out, errors.open("ab") as err:
            return subprocess.Popen([sys.executable, *words], env=environment, stdout=out, stderr=err, cwd=folder)
    process = server.Process(target=_begin, args=(list(words), dict(environment), str(output), str(errors), folder))
    process.start()
    return Forked(process, words)


def run(
    words: Sequence[str], environment: Mapping[str, str], timeout: float, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Starts Python and waits for its end, like `subprocess.run` with captured output."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "out"), Path(folder, "err")
        process = start(words, environment, output, errors, cwd)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
            process.wait()
        return subprocess.CompletedProcess(process.args, code, output.read_text(), errors.read_text())


class Rank:
    """Replaces `subprocess.Popen` in the local launcher, which starts `python -m onediff train …` once per rank."""

    def __init__(
        self,
        argv: list[str],
        *,
        env: Mapping[str, str],
        stdin: int,
        stdout: int,
        stderr: int,
        preexec_fn: Callable[[], None],
    ) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), stdout, stderr)):
                os.dup2(descriptor, number)
            signal.set_wakeup_fd(-1)
            for number in local.FORWARDED:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            os.closerange(3, 4096)
            preexec_fn()
            _become(argv[1:], env)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _begin(words: list[str], environment: dict[str, str], output: str, errors: str, folder: str) -> None:
    """In the new process, which `multiprocessing` gives nothing to read."""
    os.chdir(folder)
    for number, path in ((1, output), (2, errors)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    _become(words, environment)


def _become(words: list[str], environment: Mapping[str, str]) -> None:
    """Turns this process into `python WORDS…` and ends it. Ranks that it starts itself are forked in the same way."""
    code = 1
    gc.freeze()  # what has been imported stays; looking through it again and again would also copy it
    try:
        os.environ.clear()
        os.environ.update(environment)
        _resource_tracker._fd = _resource_tracker._pid = None
        assert "onediff.training.run" in sys.modules, "nothing is gained by a fork of what has imported nothing"
        local.subprocess = SimpleNamespace(Popen=Rank, DEVNULL=subprocess.DEVNULL)
        if words[0] == "-m":
            sys.argv = [words[1], *words[2:]]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(words)
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        _end(code)


def _end(code: int) -> None:
    """What an interpreter does at its end."""
    for last in (multiprocessing.util._exit_function, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):
        try:
            last()
        except BaseException:
            traceback.print_exc()
    os._exit(code & 0xFF)
