"""The complete configuration: invalid combinations are refused before anything is read or started."""

import subprocess
import sys

import pytest

from onediff.config.compose import configs_folder, read_composed
from onediff.config.run import RunConfig
from onediff.config.section import validated
from onediff.errors import UserError


def demo() -> dict:
    return read_composed(configs_folder() / "demo.yaml")


def test_the_demo_is_valid():
    assert list(validated(RunConfig, demo(), "").phases) == ["warm-up", "one", "two"]


def put(values: dict, path: str, value: object) -> dict:
    *parents, last = path.split("/")
    here = values
    for parent in parents:
        here = here.setdefault(parent, {})
    here[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("name", "a/b", r"name: 'a/b' is not a plain name"),
        (
            "phases/two/mix",
            {"pair": 1},
            r"phases.two.mix: no data set 'pair' under data.sets \(did you mean 'pairs'\?\)",
        ),
        ("phases/bad name", {"mix": {"pairs": 1}, "steps": 1, "global_batch": 1, "micro_batch": 1}, "not a plain name"),
        ("data/sets/pairs", {"path": "x", "task": "singel"}, r"no instruction 'singel' .*did you mean 'single'"),
        ("data/prompt/instructions", {"pair": "a"}, "`instructions` needs a text for 'couple'"),
        ("phases/one/steps", None, "phases.one: give either `steps` or `epochs`"),
        ("phases/one/epochs", 1, "phases.one: give either `steps` or `epochs`"),
        ("phases/one/train", [], "phases.one: `train` names no part"),
        ("phases/one/train", ["vison"], r"phases.one.train.0: .*'vison'"),
        ("phases/one/micro_batch", 7, r"global_batch \d+ is not a multiple of micro_batch 7"),
        ("phases/one/mix", {"singles": 0}, "mix.singles: weight 0.0 is not above 0"),
        ("phases/one/lr_of", {"vision": 1e-4}, "lr_of.vision: this phase does not train this part"),
        ("phases", {}, "phases: dictionary should have at least 1 item"),
        ("model/delta/heads", 5, r"width \d+ is not divisible by heads 5"),
        ("model/vision", {}, "needs `name` .* or `config`"),
        ("model/vision/config", {"hidden_size": 3}, "`config` needs `model_type`"),
        ("model/language/tokenizer", None, "needs `tokenizer`"),
        ("model/vision/levels", [], "model.vision.levels: tuple should have at least 1 item"),
        ("model/vision/image", {"size": 64, "shorter_side": 32}, "`shorter_side` needs fit: crop"),
        ("optimizer/lr", 0, "optimizer.lr: input should be greater than 0, got 0"),
        ("parallel", {"offload_parameters": "cpu", "zero_stage": 2}, "offload_parameters needs zero_stage 3"),
        (
            "phases/two/parallel",
            {"offload_parameters": "cpu", "zero_stage": 1},
            "phases.two.parallel: offload_parameters needs zero_stage 3",
        ),
    ],
)
def test_invalid_combinations_are_refused(path, value, message):
    with pytest.raises(UserError, match=message) as refused:
        validated(RunConfig, put(demo(), path, value), "my.yaml")
    assert str(refused.value).startswith("my.yaml: ")
    assert "\n" not in str(refused.value)


def test_the_tree_is_read_without_torch():
    """Planning and launching read it on a login node."""
    code = (
        "import sys; from onediff.config.compose import load_run; load_run('configs/demo.yaml'); "
        "print([name for name in ('torch', 'transformers', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "[]"
