"""Scoring compared with direct calls of pycocoevalcap, on the same captions in the same run.

  python benchmarks/score.py --pairs 10000 --json score.json

Each side runs in its own process: PTB tokens, BLEU-1…4, METEOR, ROUGE-L and CIDEr of all pairs, including Java's start and
exit. Ours also computes CIDEr-plain and, with `--bootstrap N`, the intervals. Prints seconds, processor seconds (which other
work on the machine hardly affects), peak memory of Python and of Java, and the ratios. The script fails if the scores do not
agree to nine digits.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from machine import machine

WORDS = (
    "the a an red blue green large small metal rubber cube sphere cone car person dog truck tree has have been is was "
    "now no longer gone moved removed added appeared disappeared from to at in on left right top bottom middle there "
    "next behind image image second first street sign umbrella white black standing walking parked near building"
)


def captions(pairs: int, seed: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    """References (one to five, as long as real ones) and predictions; the more frequent words are drawn more often."""
    rng = np.random.default_rng(seed)
    words = WORDS.split()
    weights = 1 / np.arange(1, len(words) + 1)

    def sentence() -> str:
        # Ends in a noun, as captions do; the token for a single letter before a full stop depends on the next line.
        drawn = [*rng.choice(words, int(rng.integers(5, 15)), p=weights / weights.sum()), rng.choice(words[-10:])]
        return " ".join(drawn).capitalize() + "."

    references = {str(i): [sentence() for _ in range(int(rng.integers(1, 6)))] for i in range(pairs)}
    return references, {pair: sentence() for pair in references}


def ours(pairs: int, seed: int, bootstrap: int) -> dict[str, float]:
    from onediff.evaluation.scoring import score

    return dict(score(*captions(pairs, seed), bootstrap=bootstrap).scores)


def theirs(pairs: int, seed: int, bootstrap: int) -> dict[str, float]:
    """A typical script around pycocoevalcap, without a bootstrap."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    references, predictions = captions(pairs, seed)
    tokenizer = PTBTokenizer()
    wanted = tokenizer.tokenize({pair: [{"caption": text} for text in group] for pair, group in references.items()})
    found = tokenizer.tokenize({pair: [{"caption": text}] for pair, text in predictions.items()})
    scores = dict(
        zip(("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"), Bleu(4).compute_score(wanted, found, 0)[0], strict=True)
    )
    jar = Meteor()
    scores["METEOR"] = jar.compute_score(wanted, found)[0]
    jar.meteor_p.stdin.close()
    jar.meteor_p.wait(60)
    scores["ROUGE-L"] = Rouge().compute_score(wanted, found)[0]
    scores["CIDEr"] = Cider().compute_score(wanted, found)[0]
    return {name: float(value) for name, value in scores.items()}


def measured(side: str, args: argparse.Namespace) -> dict[str, object]:
    """Runs one side in its own process; returns its scores, seconds, and peak memory in MB."""
    words = ["--pairs", str(args.pairs), "--seed", str(args.seed), "--bootstrap", str(args.bootstrap), "--side", side]
    started = time.perf_counter()
    done = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, timeout=3600)
    return {**json.loads(done.stdout.splitlines()[-1]), "seconds": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--bootstrap", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        scores = (ours if args.side == "ours" else theirs)(args.pairs, args.seed, args.bootstrap)
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        processor = sum(one.ru_utime + one.ru_stime for one in used)
        peaks = [one.ru_maxrss / 1024 for one in used]
        print(json.dumps({"scores": scores, "processor": processor, "python_mb": peaks[0], "java_mb": peaks[1]}))
        return
    rounds = [(measured("ours", args), measured("theirs", args)) for _ in range(args.rounds)]
    for one, two in rounds:
        for metric, value in two["scores"].items():
            assert abs(one["scores"][metric] - value) <= 1e-9 * max(1, abs(value)), (metric, one, two)
    ratios = {what: [one[what] / two[what] for one, two in rounds] for what in ("seconds", "processor")}
    for one, two in rounds:
        for name, side in (("onediff", one), ("pycocoevalcap", two)):
            print(
                f"{name:<14} {side['seconds']:7.1f} s   {side['processor']:7.1f} s of processor   "
                f"Python {side['python_mb']:5.0f} MB   Java {side['java_mb']:5.0f} MB"
            )
    for what, found in ratios.items():
        print(f"{what}, ours / theirs: {statistics.median(found):.2f} (median of {len(found)}; {args.pairs} pairs)")
    if args.json:
        java = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True).stderr.splitlines()[0]
        about = machine("pycocoevalcap", "numpy") | {"java": java}
        sides = [{"onediff": one, "pycocoevalcap": two} for one, two in rounds]
        result = {"pairs": args.pairs, "ratios": ratios, "machine": about, "rounds": sides}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
