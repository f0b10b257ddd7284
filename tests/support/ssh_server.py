"""A real SSH server on loopback with keys of its own, which runs what it is told in a shell, as sshd does."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 20


@contextmanager
def serving(home: Path) -> Iterator[Path]:
    """Serves until the end of the block; yields a folder whose `ssh` connects to the host `login`."""
    home.mkdir(parents=True, exist_ok=True)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)], check=True)
    server = subprocess.Popen([sys.executable, __file__, str(home)])
    try:
        port = told_port(home / "port", server)
        (home / "client.conf").write_text(
            f"Host login\n  HostName 127.0.0.1\n  Port {port}\n  User me\n  IdentityFile {home}/user\n  IdentitiesOnly yes\n"
            f"  StrictHostKeyChecking no\n  UserKnownHostsFile {home}/known\n  LogLevel ERROR\n"
        )
        (home / "bin").mkdir()
        client = home / "bin" / "ssh"
        client.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {home}/client.conf "$@"\n')
        client.chmod(0o755)
        yield home / "bin"
    finally:
        server.terminate()
        server.wait(SECONDS)


def told_port(path: Path, server: subprocess.Popen[bytes]) -> int:
    """The port, once the server listens."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and server.poll() is None:
        if path.is_file() and (text := path.read_text()).endswith("\n"):
            return int(text)
        time.sleep(0.05)
    raise AssertionError("the ssh server did not start")


async def serve(home: Path) -> None:
    """Listens on a free port, which it writes to `home/port`."""
    import asyncssh

    async def work(process: asyncssh.SSHServerProcess[bytes]) -> None:
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_shell(process.command or "", stdin=pipe, stdout=pipe, stderr=pipe)
        await process.redirect(child.stdin, child.stdout, child.stderr)
        process.exit(await child.wait())

    listening = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[str(home / "host")],
        authorized_client_keys=str(home / "user.pub"),
        process_factory=work,
        encoding=None,
    )
    (home / "port").write_text(f"{listening.get_port()}\n")
    await listening.wait_closed()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
