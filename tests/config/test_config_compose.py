"""Composition: files on files, overrides on top, and back to one file that repeats it all."""

import pytest
import yaml

from onediff.config.compose import configs_folder, find, load_run, merged, read_composed, write_run
from onediff.errors import UserError


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def files(tmp_path):
    write(tmp_path / "small.yaml", "a: {x: 1, y: 2}\nlist: [1, 2]\n")
    write(tmp_path / "parts" / "delta.yaml", "tokens: 4\nwidth: 8\n")
    return tmp_path


def test_keys_beside_base_override_it(files):
    file = write(files / "big.yaml", "base: small\na: {y: 3, z: 4}\nlist: [5]\n")
    assert read_composed(file) == {"a": {"x": 1, "y": 3, "z": 4}, "list": [5]}


def test_sections_by_file_name_and_bases_inside_sections(files):
    file = write(
        files / "run.yaml", "model: parts/delta\ndata:\n  inner: {base: parts/delta, width: 9}\nname: parts/delta\n"
    )
    assert read_composed(file) == {
        "model": {"tokens": 4, "width": 8},
        "data": {"inner": {"tokens": 4, "width": 9}},
        "name": "parts/delta",  # a plain value, not a section
    }


def test_names_are_relative_to_the_file_that_contains_them(files):
    write(files / "parts" / "small.yaml", "near: true\n")
    file = write(files / "parts" / "run.yaml", "base: small\n")
    assert read_composed(file) == {"near": True}
    assert find("demo", files) == configs_folder() / "demo.yaml"
    assert find("configs/demo.yaml", files) == configs_folder() / "demo.yaml"


def test_a_run_folder_is_preferred_over_a_file_of_the_same_name(files):
    write(files / "small" / "config.yaml", "a: {x: 9}\n")
    assert find("small", files) == files / "small" / "config.yaml"
    assert find("small.yaml", files) == files / "small.yaml"


def test_loops_of_bases(files):
    write(files / "one.yaml", "base: two\n")
    write(files / "two.yaml", "base: one\n")
    with pytest.raises(UserError, match=r"one.yaml: `base` refers back to this file"):
        read_composed(files / "one.yaml")
    # The same file twice, side by side, is no loop.
    file = write(files / "twice.yaml", "a: {base: small}\nb: {base: small}\n")
    assert set(read_composed(file)) == {"a", "b"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not readable as YAML"),
        ("- 1\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("base: nowhere\n", "nowhere: no such"),
    ],
)
def test_invalid_files_are_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as refused:
        read_composed(write(tmp_path / "bad.yaml", text))
    assert "\n" not in str(refused.value)


def test_merging_replaces_all_but_mappings():
    assert merged({"a": {"b": 1}, "c": [1]}, {"a": {"d": 2}, "c": [2]}) == {"a": {"b": 1, "d": 2}, "c": [2]}
    assert merged({"a": 1}, 3) == 3


def test_overrides():
    run = load_run(
        "configs/demo.yaml",
        ["optimizer.lr=1e-4", "phases.two.mix={pairs: 2, singles: 3}", "model.vision.levels=[2, 4]", "name=other"],
    )
    assert run.optimizer.lr == 1e-4
    assert run.phases["two"].mix == {"pairs": 2.0, "singles": 3.0}
    assert run.model.vision.levels == (2, 4)
    assert run.name == "other"
    assert load_run("configs/demo.yaml", ["data.seed=1", "data.seed=2"]).data.seed == 2


def test_an_override_names_the_file_of_a_whole_section():
    run = load_run("configs/demo.yaml", ["model=models/tiny", "model.vision.levels=[2, 4]"])
    assert run.model.vision.name is None and run.model.vision.levels == (2, 4)
    with pytest.raises(UserError, match="models/tny: no such configuration"):
        load_run("configs/demo.yaml", ["model=models/tny"])


def test_a_phase_sees_its_own_parallel_settings():
    run = load_run("configs/demo.yaml", ["parallel.reduce_in=fp32", "phases.one.parallel.zero_stage=2"])
    assert run.of_phase("one").parallel.zero_stage == 2 and run.of_phase("one").parallel.reduce_in == "fp32"
    assert run.parallel.zero_stage == 3, "the run's own stays"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=abc", r"^optimizer.lr=abc: optimizer.lr: input should be a valid number.*got 'abc'$"),
        ("optimiser.lr=1", r"^optimiser.lr=1: unknown key 'optimiser' \(did you mean 'optimizer'\?\)$"),
        ("phases.two.stepz=1", r"unknown key 'phases.two.stepz' \(did you mean 'steps'\?\)$"),
        ("data.workers", r"^data.workers: write an override as key.subkey=value$"),
        ("=3", r"^=3: write an override as"),
        ("name.x=3", r"^name.x=3: 'name' holds a value, not a section$"),
        ("phases.two.mix={pairs:1}", r"^phases.two.mix={pairs:1}: YAML wants a space after each colon"),
        ("phases.two.mix.pairs=-1", r"mix.pairs: weight -1.0 is not above 0"),
    ],
)
def test_an_error_in_an_override_names_the_override(override, message):
    with pytest.raises(UserError, match=message) as refused:
        load_run("configs/demo.yaml", [override])
    assert "\n" not in str(refused.value)


def test_an_error_in_the_file_names_the_file(tmp_path):
    file = write(tmp_path / "mine.yaml", "base: demo\noptimizer: {lrr: 1}\n")
    for overrides in ([], ["data.seed=3"]):
        with pytest.raises(UserError, match=rf"^{file}: unknown key 'optimizer.lrr' \(did you mean 'lr'\?\)$"):
            load_run(file, overrides)


def test_a_misspelt_phase_does_not_create_a_new_one():
    with pytest.raises(UserError, match=r"^phases.tow.steps=5: phases.tow would be a new phase.* mean 'two'\?\)$"):
        load_run("configs/demo.yaml", ["phases.tow.steps=5"])
    with pytest.raises(UserError, match=r"\(known: one, two, warm-up\)$"):
        load_run("configs/demo.yaml", ["phases.third.steps=5"])
    new = "phases.third={mix: {pairs: 1.0}, steps: 1, global_batch: 4, micro_batch: 4}"
    assert list(load_run("configs/demo.yaml", [new]).phases)[-1] == "third"


@pytest.mark.parametrize("name", ["demo.yaml", "onediff_7b.yaml", "onediff_2b.yaml", "onediff_70b.yaml"])
def test_round_trip(tmp_path, name):
    run = load_run(configs_folder() / name, ["optimizer.eps=1e-9", "training.seed=7"])
    write_run(run, tmp_path / "config.yaml")
    assert load_run(tmp_path) == load_run(tmp_path / "config.yaml") == run
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    # In full: what is a default today is written, too.
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["optimizer"]["schedule"] == "cosine"


@pytest.mark.parametrize("file", sorted(configs_folder().glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_configuration_is_valid(file):
    if "phases" not in read_composed(file):
        pytest.skip("not a run")
    assert load_run(file).phases
