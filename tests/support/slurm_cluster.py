"""Real Slurm daemons on this machine: munged, slurmctld, and a slurmd in a namespace of its own per node.

A node has its own host name, address, processes and shared memory, so that jobs cross hosts as on a cluster. Needs root and
Debian's slurm-wlm, munge and iproute2.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "unshare", "nsenter")

CONF = """
ClusterName=tests
SlurmctldHost={host}({net}.254)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={spool}/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={spool}/%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerNode=200
SlurmdParameters=config_overrides
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
EnforcePartLimits=ALL
ReturnToService=2
# Production clocks are minutes; a test must not wait for them.
SlurmdTimeout=6
MessageTimeout=5
TCPTimeout=2
KillWait=5
BatchStartTimeout=5
CompleteWait=0
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,requeue_setup_env_fail
JobRequeue=1
NodeName=node[1-{nodes}] NodeAddr={net}.[1-{nodes}] CPUs=16 RealMemory=4000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=dev Nodes=node[1-{nodes}] Default=YES MaxTime=2:00:00 State=UP PriorityTier=10
PartitionName=low Nodes=node[1-{nodes}] MaxTime=1:00:00 State=UP PriorityTier=1 GraceTime=10
# Large nodes that never start: what is asked of them can be judged, though not run.
SuspendProgram=/bin/true
ResumeProgram=/bin/true
SuspendTime=INFINITE
NodeName=cloud[001-512] CPUs=192 RealMemory=2000000 Gres=gpu:h100:8 State=CLOUD
PartitionName=gpu Nodes=cloud[001-512] MaxTime=7-00:00:00
PartitionName=h100 Nodes=cloud[001-512] MaxTime=7-00:00:00
PartitionName=p5 Nodes=cloud[001-512] MaxTime=7-00:00:00
"""

# What the first process of a node does, in its new namespaces: a name, its own /dev/shm, name resolution from a file only
# (a reverse look-up would wait 10 s for a name server that no node can reach), then sleep forever.
INIT = """
hostname "$2"
mount --bind "$1/hosts" /etc/hosts
mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf
mkdir -p /etc/slurm; mount --bind "$1/etc" /etc/slurm
mount -t tmpfs -o size=512m tmpfs /dev/shm
ip link set lo up
touch "$1/nodes/$2.ready"
while :; do sleep 3600 & wait $!; done
"""


def missing() -> str | None:
    """Why there can be no cluster here, in one line, or None."""
    if os.geteuid():
        return "Slurm tests need root"
    absent = [program for program in PROGRAMS if not shutil.which(program)]
    return f"Slurm tests need {', '.join(absent)}: see tests/debian-packages.txt" if absent else None


class SlurmCluster:
    """`nodes` nodes below `root`, up inside its `with` block."""

    def __init__(self, root: Path, nodes: int = 3, gpus: int = 2) -> None:
        self.root, self.count, self.gpus = root, nodes, gpus
        # slurmstepd puts sockets there, whose paths may have 108 characters.
        self.spool = Path(tempfile.mkdtemp(prefix="odslurm"))
        self.spool.chmod(0o755)
        own = self.claim()
        self.net, self.port, self.bridge = f"10.78.{own}", 17000 + 2 * own, f"odslurm{own}"
        self.inits: dict[str, subprocess.Popen[bytes]] = {}
        self.env = {**os.environ, "SLURM_CONF": str(root / "etc" / "slurm.conf")}

    def claim(self) -> int:
        """A number for addresses and ports that no other cluster on this machine has, held as long as this process lives."""
        for number in range(200):
            self.claimed = open(f"/tmp/onediff-tests-slurm-{number}.lock", "w")  # noqa: SIM115, held
            try:
                fcntl.flock(self.claimed, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.claimed.close()
            else:
                return number
        raise AssertionError("200 clusters are up on this machine")

    def __enter__(self) -> SlurmCluster:
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.down()

    @property
    def names(self) -> list[str]:
        return [f"node{number + 1}" for number in range(self.count)]

    def up(self) -> None:
        self.write_files()
        munge = self.root / "munge"
        self.sh(
            "munged",
            "--force",  # pytest's folders are closed to others, and nobody else needs the socket
            *("--key-file", munge / "key", "--socket", munge / "socket", "--pid-file", munge / "pid"),
            *("--log-file", munge / "log", "--seed-file", munge / "seed"),
        )
        subprocess.run(["ip", "link", "del", self.bridge], stderr=subprocess.DEVNULL)
        self.sh("ip", "link", "add", self.bridge, "type", "bridge")
        self.sh("ip", "addr", "add", f"{self.net}.254/24", "dev", self.bridge)
        self.sh("ip", "link", "set", self.bridge, "up")
        self.start_controller()
        for name in self.names:
            self.start_node(name)
        self.wait_until(lambda: len(self.idle_nodes()) == self.count, 300, "nodes did not register")

    def write_files(self) -> None:
        root = self.root
        for folder in ("etc", "log", "state", "munge", "nodes", "dev"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder).chmod(0o755)
        root.chmod(0o755)
        host = os.uname().nodename.partition(".")[0]
        values = {"host": host, "net": self.net, "port": self.port, "node_port": self.port + 1, "root": root}
        values["spool"] = self.spool
        (root / "etc" / "slurm.conf").write_text(CONF.format(**values, nodes=self.count, gpus=self.gpus))
        for number in range(self.gpus):  # Slurm counts distinct device files; copies of /dev/null will do
            if not (root / "dev" / f"nvidia{number}").exists():
                self.sh("mknod", root / "dev" / f"nvidia{number}", "c", "1", "3")
        (root / "etc" / "gres.conf").write_text(
            f"NodeName=node[1-{self.count}] Name=gpu File={root}/dev/nvidia[0-{self.gpus - 1}]\n"
            "NodeName=cloud[001-512] Name=gpu Type=h100 Count=8\n"
        )
        hosts = ["127.0.0.1 localhost", f"{self.net}.254 {host}"]
        hosts += [f"{self.net}.{number + 1} {name}" for number, name in enumerate(self.names)]
        (root / "hosts").write_text("\n".join(hosts) + "\n")
        (root / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        key = root / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)

    def start_controller(self) -> None:
        self.sh("slurmctld", "-i")

    def stop_controller(self) -> None:
        stop_daemon(self.root / "slurmctld.pid", "slurmctld")

    def start_node(self, name: str) -> None:
        number = int(name.removeprefix("node"))
        ready = self.root / "nodes" / f"{name}.ready"
        ready.unlink(missing_ok=True)
        with (self.root / "log" / f"{name}.log").open("ab") as log:
            flags = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
            self.inits[name] = subprocess.Popen(
                ["unshare", *flags, "bash", "-c", INIT, f"slurm-{name}", str(self.root), name],
                **{"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True},
            )
        self.wait_until(ready.exists, 300, f"{name}: no namespace")
        link, inside = f"{self.bridge}n{number}", str(self.init_pid(name))
        subprocess.run(["ip", "link", "del", link], stderr=subprocess.DEVNULL)
        self.sh("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", inside)
        self.sh("ip", "link", "set", link, "master", self.bridge, "up")
        enter = ["nsenter", "-t", inside, "-n"]
        self.sh(*enter, "ip", "addr", "add", f"{self.net}.{number}/24", "dev", "eth0")
        self.sh(*enter, "ip", "link", "set", "eth0", "up")
        self.sh(*enter, "ip", "route", "add", "default", "via", f"{self.net}.254")
        (self.spool / name).mkdir(exist_ok=True)
        clean = ["env", "-i", f"PATH={os.environ['PATH']}", "HOME=/root", "LANG=C.UTF-8"]
        self.on(name, *clean, "slurmd", "-N", name, "-f", self.env["SLURM_CONF"])

    def on(self, name: str, *words: object) -> str:
        """Runs a command inside a node."""
        return self.sh("nsenter", "-t", str(self.init_pid(name)), "-n", "-u", "-i", "-m", "-p", *words)

    def crash(self, name: str) -> None:
        """A power cut: every process of the node is gone at once."""
        self.inits[name].kill()
        self.inits.pop(name).wait()

    @contextmanager
    def crashed(self, name: str) -> Iterator[None]:
        """`name` loses its power; behind the block it comes back, and all nodes are idle again."""
        try:
            self.crash(name)
            yield
        finally:
            self.start_node(name)
            self.wait_until(lambda: set(self.idle_nodes()) == set(self.inits), 300, f"{name} did not come back")

    def init_pid(self, name: str) -> int:
        pid = self.inits[name].pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def idle_nodes(self) -> list[str]:
        lines = self.sh("sinfo", "-h", "-N", "-p", "dev", "-o", "%N %t", check=False).splitlines()
        return [line.split()[0] for line in lines if line.endswith(" idle")]

    def sh(self, *words: object, check: bool = True, seconds: float = 300) -> str:
        """Runs a command with the cluster's configuration; returns what it prints."""
        done = subprocess.run(
            [str(word) for word in words], env=self.env, capture_output=True, text=True, timeout=seconds
        )
        assert not check or done.returncode == 0, f"{words}: {done.stderr or done.stdout}"
        return done.stdout

    def wait_until(self, condition, seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{what} (logs in {self.root}/log)"
            time.sleep(0.1)

    def down(self) -> None:
        """Ends every process by its id and takes the links away."""
        for name in list(self.inits):
            self.crash(name)
        self.stop_controller()
        stop_daemon(self.root / "munge" / "pid", "munged")
        for number in range(self.count):
            subprocess.run(["ip", "link", "del", f"{self.bridge}n{number + 1}"], stderr=subprocess.DEVNULL)
        subprocess.run(["ip", "link", "del", self.bridge], stderr=subprocess.DEVNULL)
        self.claimed.close()
        shutil.rmtree(self.spool, ignore_errors=True)


def stop_daemon(pid_file: Path, program: str) -> None:
    """Ends the daemon that wrote `pid_file`, if it is still that program, and waits for its end."""
    try:
        pid = int(pid_file.read_text())
        if program not in Path(f"/proc/{pid}/comm").read_text():
            return
        descriptor = os.pidfd_open(pid)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return
    import select

    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        if not select.select([descriptor], [], [], 10)[0]:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            select.select([descriptor], [], [], 5)
    finally:
        os.close(descriptor)
