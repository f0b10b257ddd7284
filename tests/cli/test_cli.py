"""The command line: quick, lazy, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from small_run import onediff, overrides, render

from onediff.cli import COMMANDS, main
from onediff.config.compose import load_run, write_run

HEAVY = ("torch", "transformers", "deepspeed", "mlflow", "megatron", "pandas", "cv2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("data"), pairs=20, singles=20)


def mistake(words: list[str], *told: str) -> str:
    """The one line that a wrong command line gives; checks exit code 2 and that it tells all of `told`."""
    done = onediff(words)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("onediff: error:")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for text in told:
        assert text in lines[0]
    return lines[0]


def test_help_lists_every_command_under_its_group(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"\n  {name} " in shown
        assert f"\n{command.group}:" in shown


def test_help_imports_nothing_heavy():
    code = (
        f"import sys; from onediff.cli import main; main(['--help']); print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_without_torch(name, capsys):
    before = set(sys.modules)
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: onediff {name} ")
    assert "torch" in before or "torch" not in sys.modules


def test_an_unknown_command_names_the_nearest():
    mistake(["trian"], "unknown command 'trian'", "onediff train")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "train demo --procesess 2",
            "unrecognized arguments: --procesess 2; did you mean --processes? (see 'onediff train",
        ),
        ("train demo --zzz", "unrecognized arguments: --zzz (see 'onediff train --help')"),
        ("export a b =3", "unrecognized arguments: =3 (see 'onediff export --help')"),
        ("train --resume", "the following arguments are required: config"),
        ("train demo --processes many", "argument --processes: invalid integer value: 'many' ("),
        ("train demo --processes 0", "--processes: 0: must be at least 1"),
        ("evaluate runs/none --processes 0", "--processes: 0: must be at least 1"),
        ("demo --processes 0", "--processes: 0: must be at least 1"),
        ("data check data/mine --limit -1", "--limit: -1: must be at least 0"),
        ("export a b --shard-gb 0", "--shard-gb: 0: must be more than 0"),
        ("serve a --port 65536", "--port: 65536: must be from 0 to 65535"),
        ("launch submit configs/demo.yaml --profile local --nodes 0", "--nodes 0: expected a count"),
        ("launch submit configs/demo.yaml --profile local --nodes -1", "--nodes -1: expected a count"),
        ("launch submit configs/demo.yaml --profile local --nodes 2", "--nodes 2: this profile runs on this machine"),
        ("launch submit configs/demo.yaml --profile local --spares 1", "--spares 1: this profile runs on this machine"),
        ("data convert generic --overwite", "did you mean --overwrite?"),
    ],
)
def test_a_wrong_option_is_one_line_with_the_nearest(words, told, capsys):
    assert main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("onediff: error: ") and told in line


def test_a_wrong_type_names_the_key():
    mistake(["train", "configs/demo.yaml", "optimizer.lr=abc"], "optimizer.lr", "number", "'abc'")


def test_a_misspelt_key_names_the_nearest(tmp_path):
    mistake(["train", "configs/demo.yaml", "optimizer.learning=1"], "optimizer.learning", "unknown key")
    file = tmp_path / "mine.yaml"
    file.write_text("base: demo\noptimiser: {lr: 1}\n")
    mistake(["train", str(file)], "mine.yaml", "'optimiser'", "did you mean 'optimizer'")


def test_an_impossible_combination_is_refused_before_anything_starts(data, tmp_path):
    words = overrides(data, 2, rows=8, **{"phases.two.global_batch": 6, "phases.two.micro_batch": 3})
    told = mistake(["train", "configs/demo.yaml", *words, "--processes", "4", "--run", str(tmp_path / "run")])
    assert "phases.two.global_batch" in told
    assert not (tmp_path / "run").exists()


def test_missing_data_shards_and_folders_are_named(data, tmp_path):
    empty = tmp_path / "empty" / "train"
    empty.mkdir(parents=True)
    run = ["--run", str(tmp_path / "run")]
    for key, value, told in (
        ("data.sets.pairs", tmp_path / "nowhere", "no such folder"),
        ("data.sets.pairs", empty.parent, str(empty)),
    ):
        mistake(["train", "configs/demo.yaml", *overrides(data, 2), f"{key}={value}", *run], told)
    shard = next((data / "singles" / "train").glob("*.tar"))
    aside = shard.rename(shard.with_suffix(".away"))
    try:
        mistake(["train", "configs/demo.yaml", *overrides(data, 2), *run], shard.name, "missing")
    finally:
        aside.rename(shard)
    assert not (tmp_path / "run").exists()


def test_a_corrupt_image_in_a_shard_is_skipped_counted_and_reported(data, tmp_path):
    from onediff.data.manifest import build_manifest, write_manifest

    damaged = tmp_path / "damaged" / "train"
    damaged.mkdir(parents=True)
    source = next((data / "singles" / "train").glob("*.tar"))
    hurt = 0
    with tarfile.open(source) as old, tarfile.open(damaged / "singles-train-000000.tar", "w") as new:
        for member in old:
            content = old.extractfile(member)
            assert content is not None
            if member.name.endswith(".png") and not hurt:
                hurt += 1
                broken = tmp_path / "broken.png"
                broken.write_bytes(content.read()[:60])
                new.add(broken, member.name)
            else:
                new.addfile(member, content)
    write_manifest(build_manifest(damaged))
    run = tmp_path / "run"
    words = overrides(data, 5, **{"data.sets.singles": damaged.parent, "data.bad_share": 0.5})
    done = onediff(["train", "configs/demo.yaml", *words, "--run", str(run), "--phases", "warm-up"])
    assert done.returncode == 0, done.stderr
    skipped = [
        json.loads(line)["metrics"]["skipped_samples"]
        for line in (run / "tracking" / "phase-warm-up.jsonl").read_text().splitlines()
        if "skipped_samples" in line
    ]
    assert skipped[-1] >= 1
    assert "bad_image" in done.stderr


def test_caption_refuses_what_is_not_an_image_or_a_model(tmp_path):
    text = tmp_path / "note.jpg"
    text.write_text("not an image")
    mistake(["caption", str(text), str(tmp_path / "none.jpg"), "--model", str(tmp_path)], "none.jpg", "no such image")
    mistake(["caption", str(text), str(text), "--model", str(tmp_path)], str(tmp_path), "neither a run")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("export {0}/nope {0}/out", "nope: no such folder"),
        ("export {0}/new {0}/out", "new: this run has no checkpoint yet"),
        ("demo-page {0}", "neither a run (config.yaml) nor a saved model (onediff.yaml)"),
        ("caption {0}/a.png {0}/a.png --model {0}/nope", "nope: no such folder"),
        ("evaluate {0}/run split=tets", "tets: no such split; there are test, train (split=NAME)"),
        ("evaluate {0}/run evaluation.split=test", "evaluation.split=test: write split=test, without the section"),
        ("evaluate {0}/run --data {0}/nope", "nope: no such folder"),
        ("evaluate {0}/run num_beam=3", "unknown key 'num_beam' (did you mean 'num_beams'?)"),
    ],
)
def test_mistakes_are_told_before_torch_is_imported(words, told, data, tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for name in ("new", "run"):
        (tmp_path / name / "checkpoints" / "phase-two").mkdir(parents=True)
        write_run(load_run("configs/demo.yaml", overrides(data, 2)), tmp_path / name / "config.yaml")
    (tmp_path / "run" / "checkpoints" / "phase-two" / "step-00000002").mkdir()
    code = (
        f"import sys; from onediff.cli import main; code = main({words.format(tmp_path).split()!r});"
        f"print(code, [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "2 []\n"
    (line,) = done.stderr.splitlines()
    assert told in line


def test_version_tells_what_computes(capsys):
    from onediff import __version__

    assert main(["--version"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"onediff {__version__}" and told[1].startswith("torch ")
    assert [line.partition(":")[0] for line in told[2:]] == ["device", "attention"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "demo-page" in script and "submit" in script and "max-batch" in script


def test_json_is_printed_by_a_flag_and_written_by_out(tmp_path, capsys):
    words = ["plan", "demo", "--gpus", "1", "--gpu", "a100-80g"]
    code = main([*words, "--json", "--out", str(tmp_path / "plan.json")])
    said = capsys.readouterr()
    assert code in (0, 1) and json.loads(said.out) == json.loads((tmp_path / "plan.json").read_text())
    assert "phase" in said.err
    assert main(["data", "stats", str(tmp_path), "--json", "stats.json"]) == 2
    assert "--json prints, --out FILE writes" in capsys.readouterr().err


def test_a_terminal_of_few_letters_gets_every_line(data, tmp_path):
    """What Latin-1 has no letter for is a question mark."""
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    words = [sys.executable, "-m", "onediff", "train", "nowhere/\u2026.yaml"]
    done = subprocess.run(words, capture_output=True, timeout=300, env=environment)
    assert done.returncode == 2 and b"nowhere/?.yaml" in done.stderr and b"Traceback" not in done.stderr


def test_resuming_a_run_that_is_not_there_is_an_error(data, tmp_path):
    words = ["train", "configs/demo.yaml", *overrides(data, 2), "--run", str(tmp_path / "typo"), "--resume"]
    mistake(words, "typo: no run to resume here")
    assert not (tmp_path / "typo").exists()
