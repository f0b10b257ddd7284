"""A process with the habits of a training rank and none of its weight: steps in lockstep over TCP, checkpoints, warnings.

    standin_trainer.py train CONFIG --run RUN --phases PHASE --resume
    standin_trainer.py evaluate RUN --report OUT

STANDIN holds JSON: `steps`, `seconds` a step, `every` (steps between checkpoints), `faults`: a list of
{"phase", "step", "rank" or "node", "do": "exit 1" | "kill" | "stop" | "wait", "once": true}; `wait` is until RUN/go
exists or a signal comes. Step 0 is the start, before any signal is handled. `evaluations` and `saves` (step to seconds) make
rank 0 keep a heartbeat, and evaluate or save for that long after those steps, the first time only; an evaluation heeds a
stop request. Every `compare` steps the ranks compare how long their own work took. `mlflow` is the address of a server, and
an experiment, to which rank 0 logs its steps; with `losses` it writes a loss into the journal of the phase.

Each rank writes the ids of its samples into RUN/samples-PHASE.RANK.txt: 8 a step are drawn from a shuffled order, and the
rank's share of them depends on how many were drawn before. With --peer-copies every rank copies its state into memory after
every other step, and takes the newest copy that all ranks find.
"""

import argparse
import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

WISH = json.loads(os.environ.get("STANDIN", "{}"))
RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
BATCH = 8
asked = 0


def remember(number, frame):
    global asked
    asked = number


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".tmp-{path.name}-{RANK}")  # two ranks may write at once
    aside.write_text(json.dumps(value))
    os.replace(aside, path)


def write_loss(run: Path, phase: str, step: int) -> None:
    """Write a loss that falls to how far the learning rate is from 1e-3 into the journal of the phase."""
    import yaml

    from onediff.tracking.journal import Journal

    rate = float(yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["lr"])
    journal = Journal(run / "tracking" / f"phase-{phase}.jsonl", 100)
    journal.append({"step": step, "metrics": {"loss": max(rate / 1e-3, 1e-3 / rate) + 1 / step}})
    journal.close()


class Lockstep:
    """All ranks say a number each step and hear the largest; who leaves breaks the others."""

    def __init__(self) -> None:
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        if RANK == 0:
            server = socket.create_server(("", address[1]))
            self.files = [server.accept()[0].makefile("rw") for _ in range(WORLD - 1)]
            return
        for _ in range(200):
            try:
                self.files = [socket.create_connection(address).makefile("rw")]
                return
            except OSError:
                time.sleep(0.05)
        raise SystemExit("no rank 0")

    def most(self, number: int) -> int:
        if RANK == 0:
            number = max([number, *(int(self.hear(file)) for file in self.files)])
        for file in self.files:
            file.write(f"{number}\n")
            file.flush()
        return number if RANK == 0 else int(self.hear(self.files[0]))

    @staticmethod
    def hear(file) -> str:
        line = file.readline()
        if not line:
            raise ConnectionError("Connection closed by peer")
        return line


def suffer(run: Path, phase: str, step: int) -> None:
    """Does what a planned fault says, once or every time."""
    for index, fault in enumerate(WISH.get("faults", [])):
        mine = fault.get("rank", RANK) == RANK and fault.get("node", os.environ.get("SLURMD_NODENAME")) == (
            os.environ.get("SLURMD_NODENAME")
        )
        done = run / f"fault-{index}-{RANK}"
        if fault["phase"] != phase or fault["step"] != step or not mine or (fault.get("once", True) and done.exists()):
            continue
        done.touch()
        if fault["do"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault["do"] == "wait":
            while not asked and not (run / "go").exists():
                time.sleep(0.05)
            continue
        if fault["do"] == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(300)
        code = int(fault["do"].removeprefix("exit "))
        words = {2: "onediff: error: shards/x.tar: no such shard", 3: f"loss is NaN at step {step}"}
        print(words.get(code, f"fault with code {code}"), file=sys.stderr)
        sys.exit(code)


def evaluations(run: Path, phase: str):
    """Return what rank 0 does after a step, with the heartbeat of the real training, if there is anything to report."""
    if RANK or not any(WISH.get(name) for name in ("evaluations", "saves", "compare")):
        return lambda step: None
    from onediff.runs.section import beat, keep_heartbeat, section, stepped

    keep_heartbeat(run, phase)

    def after(step: int) -> None:
        stepped(step)
        seconds, mark = WISH.get("evaluations", {}).get(str(step)), run / f"evaluated-{step}"
        if seconds and not mark.exists():
            mark.touch()
            with section("evaluation"):
                time.sleep(1.1)  # longer than the pause between two beats
                beat(3, 40)
                wait_unless_asked(seconds)

    return after


def wait_unless_asked(seconds: float) -> None:
    """Sleep, but no longer than until a stop request."""
    end = time.monotonic() + seconds
    while not asked and time.monotonic() < end:
        time.sleep(0.05)


def draw_samples(run: Path, phase: str, state: dict, total: int) -> None:
    """Draw the next global batch, and write down this rank's share of it."""
    order = random.Random(0).sample(range(total * BATCH), total * BATCH)
    mine = order[state["drawn"] : state["drawn"] + BATCH][RANK::WORLD]
    state["drawn"] += BATCH
    with (run / f"samples-{phase}.{RANK}.txt").open("a") as file:
        file.write(f"{state['step']} {' '.join(map(str, mine))}\n")


def recorder(run: Path, phase: str, step: int):
    """Return the real tracker of the run and that of its phase; None if this rank logs nothing."""
    if RANK or not WISH.get("mlflow"):
        return None
    from onediff.config.tracking import TrackingConfig
    from onediff.tracking import Tracker

    uri, experiment = WISH["mlflow"]
    tracker = Tracker.open(run, TrackingConfig(uri=uri, experiment=experiment, finish_seconds=5, request_seconds=5))
    return tracker, tracker.phase(phase, step)


def compare(ranks: Lockstep, step: int, own: float) -> None:
    """Names the rank whose own work took longest, and by which share it is behind the fastest."""
    from onediff.runs.section import compared

    slowest = ranks.most(int(own * 1000) * 1000 + RANK)
    least = -ranks.most(-int(own * 1000))
    compared(step, slowest % 1000, slowest // 1000 / least - 1, "memory")


class Copies:
    """A file of every rank in the memory of two nodes, after every other step."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kept = folder, []

    def newest(self, ranks: Lockstep, state: dict) -> dict:
        """The state of the newest copy that every rank finds, if it is newer than `state`."""
        from onediff.runs.copies import bring

        here = [int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*")]
        step = ranks.most(max(here, default=0))
        path = self.folder / f"step-{step:08d}" / f"rank-{RANK}.json"
        if step <= state["step"] or ranks.most(int(not bring(path))):
            return state
        print(f"rank {RANK} takes step {step} from memory", flush=True)
        self.kept = [path.parent.name]
        return json.loads(path.read_text())

    def after(self, state: dict) -> None:
        from onediff.runs.copies import keep_only, mirror

        if state["step"] % 2:
            return
        generation = f"step-{state['step']:08d}"
        self.kept = [*self.kept[-1:], generation]
        keep_only(self.folder, self.kept)
        write(self.folder / generation / f"rank-{RANK}.json", state)
        mirror(self.folder, generation, [f"rank-{RANK}.json"], self.kept)


def train(args) -> int:
    suffer(args.run, args.phases, 0)  # while a rank still imports
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, remember)
    run, phase, total = args.run, args.phases, int(WISH.get("steps", 20))
    folder = run / "checkpoints" / f"phase-{phase}"
    saved = sorted(folder.glob("step-*/state.json"))
    state = json.loads(saved[-1].read_text()) if saved else {"step": 0, "sum": 0, "drawn": 0}
    after = evaluations(run, phase)
    ranks = Lockstep()
    copies = Copies(args.peer_copies) if args.peer_copies else None
    state = copies.newest(ranks, state) if copies else state
    print(f"rank {RANK} of {WORLD} from step {state['step']} on {os.uname().nodename}", flush=True)

    def save() -> None:
        seconds, mark = WISH.get("saves", {}).get(str(state["step"])), run / f"saved-{state['step']}"
        if RANK == 0 and seconds and not mark.exists():
            from onediff.runs.section import section

            mark.touch()
            with section("saving"):
                time.sleep(seconds)
        if RANK == 0:
            write(folder / f"step-{state['step']:08d}" / "state.json", state)

    def tell(word: str, reason=None) -> None:
        if RANK == 0:
            figures = {"step": state["step"], "steps_total": total, "loss": 1 / (1 + state["step"])}
            figures |= {"tokens_per_second": 1000.0, "updated": time.time(), "state": word, "reason": reason}
            write(run / "status.json", {"phase": phase, **figures})

    mlflow = recorder(run, phase, state["step"])
    own, every = 0.0, int(WISH.get("compare", 0))
    while state["step"] < total:
        suffer(run, phase, state["step"] + 1)
        began = time.monotonic()
        time.sleep(float(WISH.get("seconds", 0.05)))
        own += time.monotonic() - began
        ranks.most(0)
        state["step"] += 1
        draw_samples(run, phase, state, total)
        state["sum"] = state["sum"] * 31 % 1000003 + state["step"]
        if RANK == 0:
            with (run / f"steps-{phase}.txt").open("a") as file:
                file.write(f"{state['step']} {state['sum']}\n")
        if mlflow:
            mlflow[1].log(state["step"], {"loss": state["sum"]})
        if WISH.get("losses") and RANK == 0:
            write_loss(run, phase, state["step"])
        tell("running")
        if every and state["step"] % every == 0:
            compare(ranks, state["step"], own)
            own = 0.0
        after(state["step"])
        stop = ranks.most(asked)
        if copies:
            copies.after(state)
        if stop or state["step"] % int(WISH.get("every", 5)) == 0:
            save()
            stop = ranks.most(asked)  # one that came meanwhile is heeded before another step
        if stop:
            tell("stopped", signal.Signals(stop).name)
            if mlflow:
                mlflow[0].finish("KILLED")
            return 75
    save()
    tell("finished")
    if mlflow:
        mlflow[0].finish()
    if RANK == 0:
        write(run / f"phase-{phase}" / "finished.json", state)
    ranks.most(0)
    return 0


def evaluate(args) -> int:
    write(args.report, {"CIDEr": 1.0})
    return 0


parser = argparse.ArgumentParser()
commands = parser.add_subparsers(required=True)
training = commands.add_parser("train")
training.add_argument("config", type=Path)
training.add_argument("--run", type=Path)
training.add_argument("--phases")
training.add_argument("--resume", action="store_true")
training.add_argument("--peer-copies", type=Path)
training.set_defaults(act=train)
scoring = commands.add_parser("evaluate")
scoring.add_argument("run", type=Path)
scoring.add_argument("--report", type=Path)
scoring.set_defaults(act=evaluate)
if __name__ == "__main__":
    arguments = parser.parse_args()
    sys.exit(arguments.act(arguments))
