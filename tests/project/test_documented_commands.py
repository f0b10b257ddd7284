"""Every command that the documentation, a help text or a message shows is one that there is, and most of them are run here.

A line is run in this process in a folder that holds runs without checkpoints, and no data: commands that only read
configurations go to their end, jobs are tried with --dry-run, and the others must get as far as the first thing that is not
there. Lines with placeholders, those in `PARSED`, and rehearsals, which take minutes, are only parsed.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from PIL import Image

from onediff.cli import COMMANDS, Parser, add_arguments, chosen, main
from onediff.config.compose import configs_folder, load_run, write_run
from onediff.runs.folder import RunFolder

HOUSE = Path(__file__).parents[2]
PAGES = [HOUSE / "README.md", *sorted((HOUSE / "docs").glob("*.md"))]
RUN = ("plan", "config", "config show", "config explain", "runs", "runs diff", "completion", "launch jobset")
"""Commands that come to their end with nothing but configurations."""
TRIED = ("launch submit", "launch sweep", "launch data")
"""Commands that do so with --dry-run."""
REFUSED = {
    "train": "no such folder of shards|no coupling rule 'by_length'|no delta module 'gated'",
    "evaluate": "no checkpoint|no such split",
    "calibrate": "no checkpoint|no such folder|no split named train",
    "caption": "no checkpoint|no such folder|no such image",
    "demo-page": "no checkpoint|no such folder",
    "demo-tower": "no such folder of shards",
    "serve": "no checkpoint|no such folder",
    "export": "no checkpoint",
    "branch": "no checkpoint",
    "track sync": "no record of a run",
    "mlflow": "holds no mlflow.db",
    "checkpoint list": "no such|no checkpoint",
    "data check": "no such",
    "data features": "no data set names|names vision, but|cannot read",
    "data stats": "no such",
    **{f"data {name}": "no such" for name in ("filter", "merge", "reshard", "split", "subset")},
    "data convert": "no such|cannot be read|does not exist|no reader 'street'|which files it expects",
    "data build": "raw files missing",
    "launch data": "raw files of every part are missing",
    "launch status": "no such run was submitted|no runs|holds no|started without `onediff launch`",
    "launch explain": "no such run was submitted|started without `onediff launch`",
    "launch logs": "no such run was submitted|started without `onediff launch`",
    "launch cancel": "no such run was submitted|started without `onediff launch`",
    "launch resume": "no such run was submitted|started without `onediff launch`",
}
"""What commands say of the first thing that is missing: words and configuration were in order. 'street', 'by_length' and
'gated' are names that a page has its reader write."""
PARSED = {
    "fetch": "test_fetch and test_ready run it, against a hub of their own",
    "demo": "test_demo runs it",
    "score": "Java takes seconds; test_score runs it",
    "judge": "asks a language model; test_judge runs it",
    "launch search": "trains; test_search runs it",
    "launch doctor": "asks Slurm; test_launch_slurm runs it",
    "data caption": "asks a language model; test_captioning runs it",
    "data retrieve": "computes features; test_retrieve runs it",
    "data render": "minutes of images; test_scenes_data runs it",
    "data compose": "minutes of images; test_compose_data runs it",
    "data repair": "test_check runs it",
    "data show": "needs torch and a data set; test_data_show runs it",
}
PLACEHOLDER = re.compile(r"[A-Z]{2,}|.*[<…].*")


def shown(text: str) -> Iterator[str]:
    """The command lines in blocks of a page or a help text: `onediff …`, without what is said of them."""
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    for line in joined.splitlines():
        found = re.match(r"\s*(onediff (?!/)\S.*)", line)
        if found and not re.match(r"onediff [^a-z-]", found[1]):
            yield re.split(r"\s{2,}(?=[^-\s])|\s+>\s", found[1])[0].strip()


def blocks(page: Path) -> str:
    """The lines in the blocks of a page."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(?:sh|bash)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join([*fenced, *re.findall(r"^ {4}\S.*$(?:\n {6,}.*$)*", rest, re.MULTILINE)])


def lines() -> list[str]:
    """Every line, once."""
    texts = [blocks(page) for page in PAGES]
    texts += [import_module(command.module).__doc__ or "" for command in COMMANDS.values()]
    return sorted({line for text in texts for line in shown(text)})


def mentioned() -> list[str]:
    """The text in backticks in pages, configurations and the sources, of which messages are made."""
    files = [*PAGES, *(HOUSE / "configs").rglob("*.yaml")]
    files += [file for package in ("onediff", "launcher", "data_prep") for file in (HOUSE / package).rglob("*.py")]
    found = {span for file in files for span in re.findall(r"`(onediff [^`]*)`", file.read_text(encoding="utf-8"))}
    return sorted({" ".join(re.sub(r'"\s*\n\s*f?"', "", span).split()) for span in found})


def words_of(line: str) -> list[str]:
    return shlex.split(line, comments=True)[1:]


def parsed(words: list[str]) -> None:
    """Raises UserError when the command has no such argument."""
    name = chosen(words)
    assert name is not None, f"no such command: {words}"
    parser = Parser(f"onediff {name}")
    add_arguments(name, parser)
    if "--help" not in words:
        parser.parse_intermixed_args(words[len(name.split()) :])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the lines name, as far as it is configuration."""
    here = tmp_path_factory.mktemp("here")
    for name in ("demo", "base", "first", "low", "low-rate", "mine", "own-pairs", "tuned", "onediff-7b"):
        shipped = {"own-pairs": "own_pairs", "tuned": "own_pairs", "onediff-7b": "onediff_7b"}.get(name, "demo")
        (here / "runs" / name).mkdir(parents=True)
        write_run(load_run(f"configs/{shipped}.yaml"), here / "runs" / name / "config.yaml")
        RunFolder(here / "runs" / name).write_status(state="stopped", phase="one", step=0)
    (here / "profiles" / "onediff").mkdir(parents=True)
    for name in ("default", "my-cluster"):
        shutil.copy(configs_folder() / "clusters" / "infiniband.yaml", here / "profiles" / "onediff" / f"{name}.yaml")
    (here / "configs").mkdir()
    shutil.copy(configs_folder() / "own_pairs.yaml", here / "configs" / "mine.yaml")
    shutil.copy(configs_folder() / "own_pairs.yaml", here / "mine.yaml")
    (composed,) = re.findall(
        r"^    (name: composed\n(?:    .*\n)+)", (HOUSE / "docs" / "slurm.md").read_text(), re.MULTILINE
    )
    (here / "composed.yaml").write_text(yaml.safe_dump(yaml.safe_load(composed.replace("\n    ", "\n"))))
    return here


def with_export(place: Path) -> Path:
    """A folder with the description of an export in it, `my-model`."""
    model = load_run("configs/own_pairs.yaml").model.model_dump(mode="json")
    for part in ("vision", "language"):
        (place / "other" / "my-model" / part).mkdir(parents=True)
        (place / "other" / "my-model" / part / "config.json").write_text(json.dumps(model[part]["config"]))
    (place / "other" / "my-model" / "onediff.yaml").write_text(yaml.safe_dump({"model": model}))
    return place / "other"


SLOW = "--suggest"


@pytest.mark.parametrize("line", [pytest.param(x, marks=[pytest.mark.long] * (SLOW in x)) for x in lines()])
def test_every_line_that_is_shown_runs(line, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "profiles"))
    monkeypatch.setenv("HF_HOME", str(place / "hub"))
    words = [str(place / "runs") if word == "/shared/runs" else word for word in words_of(line)]
    parsed([word.replace("…", "x") for word in words])
    name = chosen(words)
    special = {"--rehearse", "--uri", "--host"} & {*words}
    if name in PARSED or special or any(PLACEHOLDER.fullmatch(word) for word in words):
        return
    if "model=my-model" in words:
        monkeypatch.chdir(with_export(place))
    if name == "train" and "--resume" not in words:
        words += ["--run", "runs/new"]
    if name == "launch submit" and "--run" not in words:  # the run of this name was submitted with other settings
        words += ["--run", f"runs/submitted-{abs(hash(line))}"]
    if name in TRIED and "--dry-run" not in words:
        words.append("--dry-run")
    assert name in (*RUN, *TRIED, *REFUSED), f"say in this file how `onediff {name}` is tried"
    code = main(words)
    told = "".join(capsys.readouterr())
    assert (code == 0 and name in (*RUN, *TRIED)) or re.search(REFUSED.get(name, "(?!)"), told), told


@pytest.mark.parametrize("span", mentioned())
def test_every_command_that_is_mentioned_exists_with_its_options(span):
    words = re.sub(r"\{[^{}]*\}", "X", span).split()[1:]
    if words[:1] == ["…"] or words[0].startswith("--"):
        return
    name = chosen(words)
    if name is None:
        assert any(known.startswith(" ".join(words[:2]).removesuffix(" …") + " ") for known in COMMANDS), span
        return
    parser = Parser(name)
    add_arguments(name, parser)
    known = {option for action in parser._actions for option in action.option_strings} | {"--help"}
    assert {word for word in words if word.startswith("--")} <= known, span


def test_pairs_of_ones_own_become_shards_as_the_tutorial_says(tmp_path, monkeypatch, capsys):
    """The tables and the commands of the page, with noise for photographs."""
    page = (HOUSE / "docs" / "tutorial.md").read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(sorted({*re.findall(r"photos/([\w-]+\.(?:jpg|png))", page)})):
        Image.effect_noise((90, 60), 20 + number).save(tmp_path / "photos" / name)
    for name, columns in (("pairs", "before,after"), ("singles", "image")):
        (table,) = re.findall(rf"^```\n({columns},caption,split\n.*?)^```", page, re.DOTALL | re.MULTILINE)
        (tmp_path / f"{name}.csv").write_text(table)
        assert main(words_of(f"onediff data convert generic --table {name}.csv --out data/mine/{name}")) == 0
        assert f"onediff data convert generic --table {name}.csv --out data/mine/{name}" in page
    (shown,) = re.findall(r"^```\n(test: 2 samples in 1 shard\n.*?)^```", page, re.DOTALL | re.MULTILINE)
    capsys.readouterr()
    assert main(["data", "check", "data/mine/pairs"]) == 0
    assert capsys.readouterr().out == shown


INSTALLS = ("python3 -m venv", "pip install")
"""Lines that need a package index; `make demo` and `make test` do the same with this checkout."""


def test_no_line_of_a_shell_block_is_left_out():
    for page in PAGES:
        for block in re.findall(r"^```(?:sh|bash)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for line in filter(None, block.splitlines()):
                assert line.startswith(("onediff ", "make ", *INSTALLS)), f"{page.name}: say how this is tried: {line}"


def test_every_target_of_make_that_is_shown_is_one():
    text = "\n".join(page.read_text() for page in PAGES)
    for target in sorted(
        set(re.findall(r"(?:^|`| )make ([a-z][a-z-]*)(?=[`\s]*(?:`|$|#| {2}|ARGS))", text, re.MULTILINE))
    ):
        done = subprocess.run(["make", "-n", target], cwd=HOUSE, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    for script in re.findall(r"`(?:python )?(benchmarks/\w+\.py)", text):
        assert (HOUSE / script).is_file(), script


@pytest.mark.parametrize("nodes", [1, 2, 4, 8, 16])
def test_the_papers_run_is_shared_out_over_8_to_128_gpus(nodes, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    submit = ["launch", "submit", "configs/onediff_7b.yaml", "--profile", "infiniband", "--dry-run"]
    assert main([*submit, "--nodes", str(nodes)]) == 0
    assert f"#SBATCH --nodes={nodes}\n" in capsys.readouterr().out
    assert main(["plan", "configs/onediff_7b.yaml", "--nodes", str(nodes)]) == 0
