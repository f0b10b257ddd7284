"""Print a script for shell completion of commands, options and files.

onediff completion bash > ~/.local/share/bash-completion/completions/onediff
onediff completion zsh > ~/.zfunc/_onediff
onediff completion fish > ~/.config/fish/completions/onediff.fish
"""

from __future__ import annotations

import argparse
from typing import Any

SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS)


def run(args: argparse.Namespace) -> None:
    import shtab

    print(shtab.complete(whole_parser(), args.shell))


def whole_parser() -> argparse.ArgumentParser:
    """All commands as one parser; `onediff` itself builds only the parser of the chosen command."""
    from onediff.cli import COMMANDS
    from onediff.cli import add_arguments as add_command_arguments

    top = argparse.ArgumentParser("onediff")
    top.add_argument("--version", action="store_true", help="versions of onediff, torch and the attention kernels")
    families: dict[str, Any] = {"": top.add_subparsers()}
    made: dict[str, argparse.ArgumentParser] = {}
    for name, command in COMMANDS.items():
        family, _, last = name.rpartition(" ")
        if family not in families:
            above = made.get(family) or families[""].add_parser(family, help=f"commands about {family}")
            families[family] = above.add_subparsers()
        made[name] = families[family].add_parser(last, help=command.summary.replace("%", "%%"))
        add_command_arguments(name, made[name])
    return top
