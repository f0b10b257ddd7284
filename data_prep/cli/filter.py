"""Remove samples that fail a condition, and near-duplicates of earlier samples.

  onediff data filter data/mine --where "change_type == 'add' and width >= 256" --out data/added
  onediff data filter data/mine --near-duplicates 4 --out data/different
  onediff data filter data/mine --near 0.97 --model facebook/dinov2-small --out data/different

Columns are the fields of the record and of its meta, caption, words (in the first caption), captions (their number), width
and height (of the first image). Removed samples are counted per filter and listed in OUT/removed.jsonl.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from data_prep.cli.copying import add_output, by_split, manifests_in, output, tell_removed
from data_prep.near import near_duplicates
from data_prep.report import show_reports
from data_prep.selection import SampleFacts, ShardPool
from data_prep.where import Where
from onediff.amounts import at_least
from onediff.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output(parser)
    parser.add_argument("--where", metavar="CONDITION", help="keep the samples for which this is true")
    parser.add_argument(
        "--near-duplicates",
        type=at_least(0),
        metavar="BITS",
        help="leave out samples whose images' 64-bit perceptual hashes differ by at most BITS from an earlier sample's; "
        "4 finds the same image in another size or quality; samples of evaluation splits take precedence",
    )
    parser.add_argument(
        "--near",
        type=float,
        metavar="COSINE",
        help="leave out samples whose images all have at least this cosine similarity, by embeddings of --model, to an "
        "earlier sample's; a good threshold depends on the model",
    )
    parser.add_argument("--model", help="a Hugging Face vision model for --near, by name or folder")


def run(args: argparse.Namespace) -> None:
    if args.where is None and args.near_duplicates is None and args.near is None:
        raise UserError("give at least one of --where, --near-duplicates and --near")
    if (args.near is None) != (args.model is None):
        raise UserError("--near COSINE and --model NAME belong together")
    if args.near is not None and not -1 <= args.near <= 1:
        raise UserError(f"--near {args.near}: must be a cosine, from -1 to 1")
    if args.near_duplicates is not None and not 0 <= args.near_duplicates <= 16:
        raise UserError(f"--near-duplicates {args.near_duplicates}: must be from 0 to 16 of the 64 bits")
    where = Where(args.where) if args.where is not None else None
    source = ShardPool(manifests_in([args.folder]))
    needs_sizes = where is not None and not where.names.isdisjoint(("width", "height"))
    kept = source.known(args.processes, needs_sizes, args.near_duplicates is not None)
    removed: dict[str, list[tuple[SampleFacts, str]]] = {}
    if where is not None:
        where.check_names({"width", "height"}.union(*(known.columns for known in kept)))
        removed["where"] = [(known, args.where) for known in kept if not where(known.columns)]
        kept = [known for known in kept if where(known.columns)]
    if args.near_duplicates is not None:
        order = evaluation_first(kept)
        twins = dict(near_duplicates((known.hashes for known in order), args.near_duplicates))
        kept = without_twins(kept, order, twins, removed.setdefault("near-duplicates", []))
    if args.near is not None:
        from data_prep.embedding import Embedder, near_by_cosine

        order = evaluation_first(kept)
        vectors = Embedder(args.model).of_samples(source.images(order), len(order))
        twins = dict(near_by_cosine(vectors, args.near))
        kept = without_twins(kept, order, twins, removed.setdefault("near", []))
    reports = source.write(by_split(kept), args.out, **output(args))
    tell_removed(removed, args.out)
    print(show_reports(reports))


def evaluation_first(samples: Sequence[SampleFacts]) -> list[SampleFacts]:
    """Puts evaluation splits first, so that shared samples are removed from training."""
    return sorted(samples, key=lambda known: known.split == "train")


def without_twins(
    kept: Sequence[SampleFacts],
    order: Sequence[SampleFacts],
    twins: Mapping[int, int],
    removed: list[tuple[SampleFacts, str]],
) -> list[SampleFacts]:
    """`kept` without the near-duplicates, which are added to `removed`."""
    removed += [(order[i], f"like {order[j].split} {order[j].key}") for i, j in twins.items()]
    gone = {order[i].place for i in twins}
    return [known for known in kept if known.place not in gone]
