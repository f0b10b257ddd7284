"""Caption a held-out split and score the captions.

  onediff evaluate runs/demo
  onediff evaluate runs/demo --data data/mine split=val --report scores.json
  onediff evaluate runs/demo@best
  onediff evaluate runs/demo --baselines --processes 2

Captions and references stay in RUN/evaluation/<data>-<split>-<phase>-<step>/, where `onediff score` reads them too.
<data> is the name of the data set's folder, preceded by its parent's if another data set of the run has the same name.
A rerun keeps the captions that exist and adds the missing ones.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onediff.amounts import at_least
from onediff.cli.output import add_json, with_json
from onediff.cli.quiet import quiet_libraries
from onediff.errors import UserError
from onediff.outputs import check_output
from onediff.ranks import own_place
from onediff.runs.address import Address

if TYPE_CHECKING:
    from onediff.config.data import DataSet
    from onediff.config.evaluation import EvaluationConfig
    from onediff.evaluation.run import Evaluation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="RUN", help="a run, RUN@best or RUN@STEP of it, or an export")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override the run's `evaluation` section")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data set (default: the first of the run with pairs)")
    parser.add_argument("--baselines", action="store_true", help="also score baselines that ignore the images")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for captions and scores")
    add_json(parser, "the scores", "--report")
    parser.add_argument(
        "--processes", type=at_least(1), metavar="N", help="share the pairs among N processes on this machine"
    )


def run(args: argparse.Namespace) -> int:
    place = own_place(args.processes)
    folder = Address.of(args.model).folder
    Address.of(args.model).require()
    if args.json_file and place.rank == 0:
        check_output(args.json_file, "--report")
    if place.alone:
        _, config = asked(args)  # torch takes seconds to import; report bad settings first
        print(f"{args.model}: evaluating the split {config.split}; loading …", file=sys.stderr, flush=True)
    quiet_libraries()
    if args.processes and args.processes > 1:
        from launcher.local import run_local

        plan = planned(args)
        words = [str(args.model), *overrides_of(plan.config), "--data", str(plan.data), "--out", str(plan.out)]
        words += ["--baselines"] if args.baselines else []
        words += ["--json"] if args.json else []
        words += ["--report", str(args.json_file)] if args.json_file else []
        command = [sys.executable, "-m", "onediff", "evaluate", *words]
        return run_local(command, args.processes, log_dir=plan.out / "logs", name="evaluate")

    from onediff.evaluation.run import evaluate
    from onediff.runs.section import keep_heartbeat, stage

    if place.rank == 0 and (folder / "config.yaml").is_file():
        keep_heartbeat(folder, "evaluate")
        stage("export")  # of the newest checkpoint, if it is not saved yet
    done = evaluate(lambda: planned(args), args.baselines)
    return 0 if done is None else with_json(args, lambda _: (0, told(folder, *done)))


def told(folder: Path, plan: Evaluation, results: dict[str, Any]) -> Any:
    """Records and prints the results of an evaluation, on rank 0; returns what `scores.json` holds."""
    import json

    record(folder, plan)
    print(results["table"])
    for note in results["notes"]:
        print(f"note: {note}")
    if results["unreadable"]:
        print(f"{len(results['unreadable'])} samples could not be read, the first: {results['unreadable'][0]}")
    print(f"captions, scores and report: {plan.out}")
    return json.loads((plan.out / "scores.json").read_text(encoding="utf-8"))


def asked(args: argparse.Namespace) -> tuple[list[Path], EvaluationConfig]:
    """Data sets that have the split, and settings, from the command line and the run. Raises UserError. Torch-free."""
    from onediff.config.compose import apply_override, load_run
    from onediff.config.evaluation import EvaluationConfig
    from onediff.config.section import validated
    from onediff.evaluation.metrics import chosen

    values: dict[str, Any] = {}
    folders: list[Path] = [args.data] if args.data else []
    folder = Address.of(args.model).folder
    if (folder / "config.yaml").is_file():
        run_config = load_run(folder)
        values = run_config.evaluation.model_dump(mode="json")
        *_, last = run_config.phases.values()
        folders = folders or [Path(run_config.data.sets[name].path) for name in last.mix]
    for override in args.overrides:
        if override.startswith("evaluation."):
            raise UserError(f"{override}: write {override.removeprefix('evaluation.')}, without the section")
        apply_override(values, override)
    config = validated(EvaluationConfig, values, " ".join(args.overrides) or str(args.model))
    chosen(config.metrics)  # reports an unknown one before anything is captioned
    if not folders:
        raise UserError("--data: name the data set; a saved model does not record one")
    if args.data and not args.data.is_dir():
        raise UserError(f"--data: {args.data}: no such folder")
    found = [folder for folder in folders if (folder / config.split).is_dir()]
    if not found:
        splits = sorted({path.parent.name for folder in folders for path in folder.glob("[!.]*/manifest.json")})
        there = f"there are {', '.join(splits)} (split=NAME)" if splits else "name a data set with --data"
        raise UserError(f"{folders[0] / config.split}: no such split; {there}")
    return found, config


def planned(args: argparse.Namespace) -> Evaluation:
    """Model, data, decoding and output folder from the command line and the run. Raises UserError."""
    from onediff.evaluation.run import Evaluation
    from onediff.model.saved import description
    from onediff.training.export import saved_model_of

    folders, config = asked(args)
    data = args.data or data_with_pairs(folders, config.split)
    folder = Address.of(args.model).folder
    saved = saved_model_of(args.model)
    trained = description(saved).trained
    own = sets_of(folder)
    label = f"{name_of(data, own)}-{config.split}-{trained.get('phase', 'model')}-{trained.get('step', 0)}"
    return Evaluation(saved, data, config, args.out or folder / "evaluation" / label, task_of(data, own))


def name_of(data: Path, own: list[DataSet]) -> str:
    """The name of a data set in its scores' folders, with its parent's if the run has another one of the same name."""
    paths = [Path(one.path).resolve() for one in own]
    is_taken = data.resolve() not in paths and data.name in [path.name for path in paths]
    return f"{data.resolve().parent.name}-{data.name}" if is_taken else data.name


def task_of(data: Path, own: list[DataSet]) -> str | None:
    """The task of a data set; None if it has none or does not belong to the run."""
    return next((one.task for one in own if Path(one.path).resolve() == data.resolve()), None)


def sets_of(folder: Path) -> list[DataSet]:
    """The data sets of the run in `folder`; none if there is no run."""
    from onediff.config.compose import load_run

    return list(load_run(folder).data.sets.values()) if (folder / "config.yaml").is_file() else []


def data_with_pairs(folders: list[Path], split: str) -> Path:
    """The first data set with pairs in its split. Raises UserError if there is none."""
    from onediff.data.heldout import first_with_pairs

    if (folder := first_with_pairs(folders, split)) is None:
        named = ", ".join(map(str, folders))
        raise UserError(f"--data: {named}: no pairs in split {split!r}; name a data set that has some")
    return folder


def overrides_of(config: Any) -> list[str]:
    """The section as overrides, so that the ranks use the settings that were checked here."""
    import json

    return [f"{key}={json.dumps(value)}" for key, value in config.model_dump(mode="json").items()]


def record(model: Path, plan: Evaluation) -> None:
    """Adds the scores to the run's record in MLflow. A saved model has no record."""
    import json

    from onediff.config.compose import load_run
    from onediff.data.manifest import FILE
    from onediff.model.saved import description

    if not (model / "config.yaml").is_file():
        return
    from onediff.tracking.tracker import Tracker

    results = json.loads((plan.out / "scores.json").read_text())
    config = load_run(model).tracking
    tracker = Tracker.attach(model, config)
    child = tracker.evaluation(plan.out.name, tags={"protocol": results["protocol"], "pairs": results["pairs"]})
    manifest = plan.data / plan.config.split / FILE
    if manifest.is_file():
        child.dataset(manifest, "evaluation")
    child.log(0, {name: value for name, value in results["scores"].items() if value is not None})
    trained = description(plan.model).trained
    child.scores_of(trained["phase"], trained["step"], manifest if manifest.is_file() else None)
    for name in ("scores.json", "predictions.jsonl", "references.jsonl", "report.html"):
        child.artifact(plan.out / name)
    child.finish("FINISHED")
    cider = results["scores"].get("CIDEr")
    if config.register_as:
        data = f"{plan.data.name}-{plan.config.split}"
        score = None if cider is None else {"metric": "CIDEr", "value": cider, "data": data}
        tracker.model(plan.model, config.register_as, score=score)
    tracker.finish(None)
