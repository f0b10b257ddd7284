"""`onediff launch … --host HOST:DIR`: run the same command on a login node over ssh.

Local files named in the command are sent along: the configuration, composed into one file, and the profile. The code is
that of the installation on the host.
"""

from __future__ import annotations

import hashlib
import io
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from onediff.config.compose import as_yaml, load_run
from onediff.errors import UserError

CONNECTION_FAILED = 255
"""Exit code of ssh if ssh itself failed."""
TAKES_CONFIG = ("submit", "sweep", "search")
TAKES_PROFILE = (*TAKES_CONFIG, "data", "doctor")


def run_there(host: str, subcommand: str, words: Sequence[str]) -> int:
    """Run a subcommand of `onediff launch` with the arguments `words` in DIR on HOST. Returns its exit code.

    Uses `.venv/bin/onediff` in DIR if it exists, else the `onediff` of a login shell. Raises UserError if ssh fails to
    connect.
    """
    address, _, folder = host.partition(":")
    if not address or address.startswith("-"):
        raise UserError(f"--host {host}: expected HOST:DIR, such as me@login.example.org:projects/onediff")
    folder = folder or "."
    words, files = packed(subcommand, words)
    if files:
        send(address, folder, files)
    work = (
        f"cd {shlex.quote(folder)} && command=onediff && if [ -x .venv/bin/onediff ]; then command=.venv/bin/onediff; fi "
        f'&& exec "$command" {shlex.join(["launch", subcommand, *words])}'
    )
    terminal = ["-t"] if sys.stdin.isatty() and sys.stdout.isatty() else []
    return over_ssh([*terminal, address, f"exec bash -lc {shlex.quote(work)}"], address)


def packed(subcommand: str, words: Sequence[str]) -> tuple[list[str], dict[str, bytes]]:
    """The arguments for the host, and the files they name by their path on the host."""
    said, files = list(words), dict[str, bytes]()
    for number, word in enumerate(said):
        before = said[number - 1] if number else ""
        if before == "--profile" and subcommand in TAKES_PROFILE:
            content = Path(word).read_bytes() if Path(word).is_file() else None
        elif subcommand in TAKES_CONFIG and not before.startswith("--") and word.endswith((".yaml", ".yml")):
            content = composed(word)
        else:
            continue
        if content is not None:
            # Named by content, so that two submissions never overwrite each other's files.
            there = f"runs/sent/{hashlib.sha256(content).hexdigest()[:12]}/{Path(word).name}"
            said[number], files[there] = there, content
    return said, files


def composed(name: str) -> bytes:
    """A configuration merged with everything it includes from other files."""
    return as_yaml(load_run(name)).encode()


def send(address: str, folder: str, files: dict[str, bytes]) -> None:
    """Write files into `folder` on a host."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    work = f"mkdir -p {shlex.quote(folder)} && tar -x -C {shlex.quote(folder)}"
    if code := over_ssh([address, work], address, archive.getvalue()):
        raise UserError(f"--host {address}: cannot write to {folder} (exit code {code})")


def over_ssh(words: Sequence[str], address: str, given: bytes | None = None) -> int:
    """Run ssh and return its exit code. Raises UserError if ssh is missing or cannot connect."""
    try:
        done = subprocess.run(["ssh", *words], input=given, check=False)
    except FileNotFoundError:
        raise UserError("--host: ssh is not installed") from None
    if done.returncode == CONNECTION_FAILED:
        raise UserError(f"--host {address}: ssh could not connect; see its message above")
    return done.returncode
