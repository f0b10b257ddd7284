"""Write a run as a Kubernetes JobSet, for clusters without Slurm.

  onediff launch jobset configs/onediff_7b.yaml --image registry.example/onediff:1 --claim shared --nodes 8 > run.yaml
  kubectl apply -f run.yaml

Each phase is an indexed Job that starts once the previous one has succeeded; the evaluation comes last. The claim is
mounted at /shared, which is the working directory: relative paths in the configuration start there, and the run's folder
is /shared/runs/<name>. After a pod fails, the set restarts from the latest checkpoint; bad input or a loss that is not a
number ends it. Settings that training would refuse are refused here; what is on the claim is not looked at.
Needs JobSet 0.8 or later.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path, PurePosixPath

from onediff.amounts import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that override the file")
    parser.add_argument("--image", required=True, help="container image with OneDiff installed")
    parser.add_argument("--claim", required=True, help="PersistentVolumeClaim that all pods can write")
    parser.add_argument(
        "--mount", type=PurePosixPath, default="/shared", metavar="DIR", help="where to mount it (default: /shared)"
    )
    parser.add_argument(
        "--nodes", type=at_least(1), default=1, metavar="N", help="pods per training phase (default: 1)"
    )
    parser.add_argument(
        "--gpus-per-node", type=at_least(0), default=8, metavar="N", help="GPUs and ranks per pod (default: 8)"
    )
    parser.add_argument(
        "--restarts", type=at_least(0), default=20, metavar="N", help="restarts after failures (default: 20)"
    )
    parser.add_argument("--phases", metavar="A,B", help="only these phases; 'evaluate' is one (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write to this file instead of standard output")


def run(args: argparse.Namespace) -> int:
    from launcher.jobset import Pods, manifests
    from launcher.plan import EVALUATE
    from launcher.ready import require_fit
    from onediff.atomic import write_whole
    from onediff.config.compose import load_run
    from onediff.config.run import chosen_phases
    from onediff.errors import UserError
    from onediff.outputs import check_output, writing

    check_output(args.out, "--out")
    mount = PurePosixPath(args.mount)
    if not mount.is_absolute():
        raise UserError(f"--mount {mount}: give an absolute path, such as /shared")
    if not re.fullmatch(r"\S+", args.image):
        raise UserError(f"--image {args.image!r}: not the name of an image")
    if not re.fullmatch(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?", args.claim):
        raise UserError(f"--claim {args.claim!r}: not the name of a claim; use lower-case letters, digits, '-' and '.'")
    config = load_run(args.config, args.overrides)
    pods = Pods(args.image, args.claim, mount, args.nodes, args.gpus_per_node, args.restarts)
    phases = chosen_phases([*config.phases, EVALUATE], args.phases)
    text = manifests(config, phases, pods)
    require_fit(config, phases, begun=False, environment={})
    if args.out is None:
        print(text, end="")
    else:
        with writing(args.out):
            write_whole(args.out, text)
    return 0
