"""A Java program that reads and writes lines, and is always ended, even if it hangs or fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from onediff.evaluation.metrics.metric import Unavailable


class JavaUnavailable(Unavailable):
    """Java is missing, failed, or did not answer in time; the message is one line for the user."""


class JavaProgram:
    """A Java program fed from a temporary file, so that it runs in parallel and neither side can block the other.

    A context manager: leaving it ends the process. `answers` waits for the program to end and returns its output lines.
    """

    def __init__(self, arguments: Sequence[str], lines: Sequence[str]) -> None:
        self.arguments = arguments
        self.lines = lines

    def __enter__(self) -> JavaProgram:
        java = java_command()
        self.output = tempfile.TemporaryFile()
        self.messages = tempfile.TemporaryFile()
        with tempfile.TemporaryFile() as given:
            given.write("".join(f"{line}\n" for line in self.lines).encode())
            given.seek(0)
            try:
                # The encoding is pinned because Java takes it from the locale, which is ASCII in many containers.
                self.process = subprocess.Popen(
                    [java, "-Dfile.encoding=UTF-8", "-Dsun.stdout.encoding=UTF-8", *self.arguments],
                    stdin=given,
                    stdout=self.output,
                    stderr=self.messages,
                )
            except OSError as error:
                raise JavaUnavailable(f"{java} does not start: {error.strerror}") from None
        return self

    def answers(self, seconds: float) -> list[str]:
        """The output lines, once the program has ended. Raises JavaUnavailable after `seconds`, or if it fails."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise JavaUnavailable(f"Java did not answer within {seconds:.0f} s") from None
        if code != 0:
            self.messages.seek(0)
            last = self.messages.read().decode(errors="replace").strip().splitlines() or ["no message"]
            raise JavaUnavailable(f"Java exited with code {code}: {last[0]}")
        self.output.seek(0)
        # Captions may contain characters that `splitlines` treats as line ends.
        return self.output.read().decode().split("\n")

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.output.close()
        self.messages.close()


def java_command() -> str:
    """Path of `java`, from JAVA_HOME or PATH. Raises JavaUnavailable if there is none."""
    home = os.environ.get("JAVA_HOME")
    candidate = Path(home) / "bin" / "java" if home else None
    if candidate is not None and candidate.is_file():
        return str(candidate)
    found = shutil.which("java")
    if found is None:
        raise JavaUnavailable("Java is not installed (no `java` on PATH); install one, such as default-jre-headless")
    return found
