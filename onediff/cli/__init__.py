"""The command `onediff`: a table of subcommands, each imported only when it is chosen.

A command is a module with `add_arguments(parser)` and `run(args) -> int | None`. To add a command, add a line to `COMMANDS`.
"""

from __future__ import annotations

import argparse
import codecs
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from textwrap import indent
from types import ModuleType
from typing import NamedTuple, NoReturn

from onediff.errors import UserError


class Command(NamedTuple):
    """One subcommand: its heading in the help, its module, and a one-line summary."""

    group: str
    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    "demo": Command("start here", "onediff.cli.demo", "run everything once, small, on this machine"),
    "demo-tower": Command("start here", "onediff.cli.demo_tower", "train the vision tower that the demo starts from"),
    "completion": Command("start here", "onediff.cli.completion", "print a shell completion script"),
    "train": Command("model", "onediff.cli.train", "train a model, phase by phase"),
    "fetch": Command("model", "onediff.cli.fetch", "download the weights that a configuration names"),
    "plan": Command("model", "onediff.cli.plan", "predict a run's memory, traffic, FLOPs and time"),
    "evaluate": Command("model", "onediff.cli.evaluate", "caption a held-out split and score the captions"),
    "score": Command("model", "onediff.cli.score", "score captions against references"),
    "judge": Command("model", "onediff.cli.judge", "let a language model compare captions with references"),
    "calibrate": Command("model", "onediff.cli.calibrate", "measure how far a model can be trusted"),
    "caption": Command("model", "onediff.cli.caption", "describe how two images differ"),
    "demo-page": Command("model", "onediff.cli.demo_page", "open a local page that captions two dropped images"),
    "serve": Command("model", "onediff.cli.serve", "serve a model: OpenAI-compatible endpoint, page, metrics"),
    "export": Command("model", "onediff.cli.export", "write a trained model to a folder"),
    "config": Command("configuration", "onediff.cli.config", "print the reference of all keys"),
    "config show": Command("configuration", "onediff.cli.config_show", "print a configuration in full"),
    "config explain": Command("configuration", "onediff.cli.config_explain", "explain a key"),
    "runs": Command("runs", "onediff.cli.runs", "list runs: state, phase, step, loss, scores, speed, job"),
    "branch": Command("runs", "onediff.cli.branch", "start a new run from a checkpoint of another"),
    "runs diff": Command("runs", "onediff.cli.runs_diff", "compare two runs: settings, data, code, results"),
    "checkpoint list": Command("runs", "onediff.cli.checkpoint_list", "list the checkpoints of a run"),
    "checkpoint verify": Command("runs", "onediff.cli.checkpoint_verify", "check every file of checkpoints"),
    "checkpoint convert": Command(
        "runs", "onediff.cli.checkpoint_convert", "write a checkpoint's weights as safetensors"
    ),
    "mlflow": Command("runs", "onediff.cli.mlflow", "open MLflow on a folder of runs, even a moved one"),
    "track sync": Command("runs", "onediff.cli.track", "send to MLflow what a run could not send"),
    "data convert": Command(
        "data", "data_prep.cli.convert", "turn a data set, or your own table of pairs, into shards"
    ),
    "data caption": Command("data", "data_prep.cli.caption_pairs", "have a language model caption pairs"),
    "data build": Command("data", "data_prep.cli.build", "build a collection of data sets, such as DiffCap"),
    "data retrieve": Command("data", "data_prep.cli.retrieve", "find pairs of similar photographs in a folder"),
    "data check": Command("data", "data_prep.cli.check", "verify shards, records, images and splits"),
    "data repair": Command("data", "data_prep.cli.repair", "write a clean copy without what 'data check' finds"),
    "data stats": Command("data", "onediff.cli.data_stats", "count samples, captions, words, sizes, kinds of change"),
    "data show": Command("data", "onediff.cli.data_show", "draw samples exactly as the model sees them"),
    "data features": Command("data", "onediff.cli.data_features", "precompute a frozen tower's features for training"),
    "data index": Command("data", "data_prep.cli.index", "index tars that another tool has written"),
    "data merge": Command("data", "data_prep.cli.merge", "merge several data sets"),
    "data subset": Command("data", "data_prep.cli.subset", "take some samples of each split"),
    "data filter": Command("data", "data_prep.cli.filter", "remove samples by a condition, and near-duplicates"),
    "data reshard": Command("data", "data_prep.cli.reshard", "rewrite samples into shards of another size or order"),
    "data split": Command("data", "data_prep.cli.split", "divide a data set into new splits"),
    "data render": Command(
        "data", "data_prep.cli.render", "render pairs of scenes with a known change, and single scenes"
    ),
    "data compose": Command("data", "data_prep.cli.compose", "make pairs from photographs and cut-outs"),
    "launch submit": Command(
        "cluster", "launcher.commands.submit", "queue a run as a chain of Slurm jobs, or run it here"
    ),
    "launch status": Command(
        "cluster", "launcher.commands.status", "show phase, job, step, loss, time left, restarts and why"
    ),
    "launch logs": Command("cluster", "launcher.commands.logs", "print or follow the log of a run or of one rank"),
    "launch cancel": Command("cluster", "launcher.commands.cancel", "cancel a run's jobs after a checkpoint"),
    "launch resume": Command("cluster", "launcher.commands.resume", "queue the rest of a run again"),
    "launch explain": Command("cluster", "launcher.commands.explain", "explain what happened to a run"),
    "launch sweep": Command("cluster", "launcher.commands.sweep", "queue one run for every combination of values"),
    "launch search": Command("cluster", "launcher.commands.search", "search for good settings with Optuna"),
    "launch jobset": Command("cluster", "launcher.commands.jobset", "write a run as a Kubernetes JobSet"),
    "launch data": Command("cluster", "launcher.commands.data", "build data sets with a Slurm array"),
    "launch doctor": Command("cluster", "launcher.commands.doctor", "check a cluster from here and from its nodes"),
}

DESCRIPTION = "Train, evaluate and use a model that describes how two similar images differ."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit code: 0 for success, 2 for something the user can fix, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and (
            codecs.lookup(stream.encoding).name != "utf-8" or stream.errors == "strict"
        ):
            # A Latin-1 terminal cannot print arrows, none a file's name that is not text; that must not end a command.
            stream.reconfigure(errors="replace")
    try:
        if words in (["--version"], ["-V"]):
            from onediff.cli.version import version_lines

            print("\n".join(version_lines()))
            return 0
        name = chosen(words)
        if name is None:
            return help_or_mistake(words)
        module = importlib.import_module(COMMANDS[name].module)
        parser = Parser(
            f"onediff {name}", description=_help(module), formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add_arguments(name, parser)
        given = words[len(name.split()) :]
        args = parser.parse_intermixed_args(given)
        if name.startswith("launch ") and args.host:
            from launcher.ssh import run_there

            return run_there(args.host, name.removeprefix("launch "), without(given, "--host"))
        return int(module.run(args) or 0)
    except UserError as error:
        print(f"onediff: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output has exited (`onediff … | head`); keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in NOT_WRITABLE or not error.filename:
            raise
        print(f"onediff: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("onediff: interrupted", file=sys.stderr)
        return 130


NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""Errors of a file system that is full or that the user may not write to."""


class Parser(argparse.ArgumentParser):
    """Reports a bad command line in one line, without printing the usage first."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError with argparse's message, the nearest option, and where to read more."""
        from difflib import get_close_matches

        unknown = message.removeprefix("unrecognized arguments: ").split("=")[0].partition(" ")[0]
        known = [option for action in self._actions for option in action.option_strings]
        close = get_close_matches(unknown, known, n=1) if unknown.startswith("-") and unknown not in known else []
        meant = f"; did you mean {close[0]}?" if close else ""
        if message.startswith("unrecognized") and not unknown.startswith("-") and unknown.endswith(".json"):
            meant = f"; --json prints, {self.get_default('json_option') or '--out'} FILE writes"
        raise UserError(f"{message}{meant} (see '{self.prog} --help')")


def add_arguments(name: str, parser: argparse.ArgumentParser) -> None:
    """Gives a parser the arguments of a command."""
    importlib.import_module(COMMANDS[name].module).add_arguments(parser)
    if name.startswith("launch "):
        parser.add_argument(
            "--host", metavar="HOST:DIR", help="run the command over ssh, in a folder where OneDiff is installed"
        )


def without(words: Sequence[str], option: str) -> list[str]:
    """`words` without an option and its value."""
    left = [word for word in words if not word.startswith(f"{option}=")]
    if option in left:
        at = left.index(option)
        del left[at : at + 2]
    return left


def chosen(words: Sequence[str]) -> str | None:
    """The longest command name that `words` starts with, if any."""
    return next((name for n in (2, 1) if (name := " ".join(words[:n])) in COMMANDS), None)


def help_or_mistake(words: Sequence[str]) -> int:
    """Prints the grouped help of `onediff` or of a family such as `onediff data`, or names the nearest command."""
    from difflib import get_close_matches

    plain = [word for word in words if not word.startswith("-")]
    family = plain[0] + " " if plain else ""
    listed = {name: command for name, command in COMMANDS.items() if name.startswith(family)}
    if plain and (not listed or len(plain) > 1):
        typed = " ".join(plain[:2]) if listed else plain[0]
        close = get_close_matches(typed, list(COMMANDS) + [name.split()[0] for name in COMMANDS], n=1)
        meant = f"did you mean 'onediff {close[0]}'?" if close else "'onediff --help' lists the commands"
        raise UserError(f"unknown command {typed!r}; {meant}")
    print(f"usage: onediff {family}COMMAND …\n\n{DESCRIPTION}")
    for group in dict.fromkeys(command.group for command in listed.values()):
        print(f"\n{group}:")
        for name, command in listed.items():
            if command.group == group:
                print(f"  {name:<22} {command.summary}")
    print(f"\n'onediff {family}COMMAND --help' describes a command.")
    return 0


def _help(module: ModuleType) -> str:
    """The command's docstring. If only examples follow its summary, indents them: `ruff format` moves them to the margin."""
    summary, _, rest = (module.__doc__ or "").partition("\n\n")
    alone = rest.startswith("onediff ") and "\n\n" not in rest
    return f"{summary}\n\n{indent(rest, '  ') if alone else rest}"
