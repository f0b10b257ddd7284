"""Optimizer states on NVMe: bit-identical training, and checkpoints that are written and loaded."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bare_torch import bare_losses
from places import SUPPORT
from processes import run_ranks
from safetensors.torch import load_file
from small_run import metrics, render, train

from onediff.config.parallel import SWAPPED_TENSORS, ParallelConfig
from onediff.errors import UserError
from onediff.ranks import Ranks
from onediff.training import checkpoint
from onediff.zero.lean import deepspeed
from onediff.zero.nvme import can_lock, check_room, compile_swapping, keep_gradients, swap_folder

WORKER = SUPPORT / "checkpoint_worker.py"
STEP = "step-00000003"
# What DeepSpeed compiles for it takes two cores five minutes and more.
pytestmark = pytest.mark.long
# Each matrix has, on each of two ranks, the megabyte from which DeepSpeed swaps; one has an odd size. The idle weights share
# a sub-group with others on two ranks, and have one of their own on one rank.
SIZES = (2048, 256, 2051, 400_000)


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    """Compiles the extensions for swapping, once per machine; skips without libaio or if memory cannot be locked."""
    if not deepspeed.ops.op_builder.AsyncIOBuilder().is_compatible():
        pytest.skip("DeepSpeed finds no libaio, or no C++ compiler; Debian's packages are libaio-dev and g++")
    compile_swapping()
    if not can_lock(1 << 28):
        pytest.skip("this machine lets no process lock 256 MB of memory (`ulimit -l`)")


def results_of(folder: Path, actions: list[dict], world: int) -> list[dict]:
    """Runs the actions in `world` ranks; one result per action."""
    out = folder / "results.json"
    shared = {"stage": 3, "sizes": SIZES}
    run_ranks(WORKER, [json.dumps([{**shared, **action} for action in actions]), str(out)], world)
    return json.loads(out.read_text())


def nvme(folder: Path) -> dict:
    """DeepSpeed's section for states in files below `folder`."""
    return {"device": "nvme", "nvme_path": str(folder), "buffer_count": SWAPPED_TENSORS}


CPU = {"device": "cpu", "pin_memory": False}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, dict[str, dict]]:
    """Three steps of two ranks with states in host memory, on NVMe, and on the device, and a checkpoint; two more steps;
    then the same two steps from each other's checkpoints."""
    folder = tmp_path_factory.mktemp("saved")
    train = {"to": 3, "then": 5, "dropout": 0.3}
    go_on = {"from": 3, "to": 5, "dropout": 0.3, "seed": 9}
    actions = {
        "cpu": {"offload": CPU, "save": str(folder / "cpu"), **train},
        "nvme": {"offload": nvme(folder / "swap-1"), "save": str(folder / "nvme"), **train},
        "none": {"save": str(folder / "none"), **train},
        "stage 1": {"stage": 1, "save": str(folder / "stage-1"), **train},
        "nvme from nvme": {"offload": nvme(folder / "swap-2"), "load": str(folder / "nvme" / STEP), **go_on},
        "cpu from nvme": {"offload": CPU, "load": str(folder / "nvme" / STEP), **go_on},
        "none from nvme": {"load": str(folder / "nvme" / STEP), **go_on},
        "stage 2 from nvme": {"stage": 2, "load": str(folder / "nvme" / STEP), **go_on},
        "nvme from cpu": {"offload": nvme(folder / "swap-3"), "load": str(folder / "cpu" / STEP), **go_on},
        "nvme from stage 1": {"offload": nvme(folder / "swap-4"), "load": str(folder / "stage-1" / STEP), **go_on},
        "bf16": {"precision": "bf16", "offload": CPU, "save": str(folder / "bf16"), **train},
        "bf16 nvme": {
            "precision": "bf16",
            "offload": nvme(folder / "swap-6"),
            "save": str(folder / "bf16-nvme"),
            **train,
        },
    }
    return folder, dict(zip(actions, results_of(folder, list(actions.values()), 2), strict=True))


def assert_same_files(one: Path, other: Path) -> None:
    """Asserts that all tensors of two checkpoints, including random states, are bit-identical."""
    for file in sorted(one.glob("*.safetensors")):
        before, after = load_file(file), load_file(other / file.name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before), file.name


@pytest.mark.parametrize(("here", "there"), [("cpu", "nvme"), ("bf16", "bf16 nvme")])
def test_training_is_bit_identical_to_that_with_states_in_host_memory(saved, here, there):
    folder, runs = saved
    assert runs[there]["losses"] + runs[there]["then"] == runs[here]["losses"] + runs[here]["then"]
    assert_same_files(folder / here / STEP, folder / there.replace(" ", "-") / STEP)


def test_training_is_the_same_as_without_offload(saved):
    _, runs = saved
    for other in ("none", "stage 1"):
        assert runs["nvme"]["losses"] + runs["nvme"]["then"] == pytest.approx(
            runs[other]["losses"] + runs[other]["then"], rel=1e-6
        )


def test_checkpoints_are_written_and_loaded(saved):
    _, runs = saved
    assert runs["nvme from nvme"]["losses"] == runs["nvme"]["then"]
    assert runs["cpu from nvme"]["losses"] == runs["nvme"]["then"]
    assert runs["nvme from cpu"]["losses"] == runs["cpu"]["then"]
    assert runs["none from nvme"]["losses"] == pytest.approx(runs["nvme"]["then"], rel=1e-6)
    assert runs["stage 2 from nvme"]["losses"] == pytest.approx(runs["nvme"]["then"], rel=1e-6)
    assert runs["nvme from stage 1"]["losses"] == pytest.approx(runs["stage 1"]["then"], rel=1e-6)


def test_another_number_of_ranks_resumes(saved, tmp_path):
    folder, _ = saved
    go_on = {"load": str(folder / "nvme" / STEP), "from": 3, "to": 5, "seed": 9}
    # Dropout differs with the number of ranks: both without.
    actions = [{"offload": nvme(tmp_path / "swap"), **go_on}, {"offload": CPU, **go_on}, {**go_on, "stage": 0}]
    here, host, plain = results_of(tmp_path, actions, 1)
    assert here["losses"] == host["losses"]
    assert here["losses"] == pytest.approx(plain["losses"], rel=1e-6)
    assert here["extra"] == {"lanes": [1, 2]}


def test_each_sub_group_is_loaded_once(saved):
    """Saving loads several sub-groups, one after the other."""
    swapped_in = saved[1]["nvme"]["swapped_in"]
    assert len(swapped_in) > 1
    assert len(set(swapped_in)) == len(swapped_in)
    manifest = checkpoint.verify_checkpoint(saved[0] / "nvme" / STEP)
    assert manifest.parameters["second.weight"].states == ["weight", "exp_avg", "exp_avg_sq"]


def configured(folder: Path) -> ParallelConfig:
    return ParallelConfig(offload_optimizer="nvme", nvme_folder=folder)


def test_each_run_has_its_own_folder_which_is_removed_at_the_end(tmp_path):
    config = configured(tmp_path / "nvme")
    runs = [tmp_path / name / "run" for name in "ab"]
    with swap_folder(config, runs[0], Ranks()) as one, swap_folder(config, runs[1], Ranks()) as two:
        assert one != two and one.is_dir() and two.is_dir()
        files = one / "zero_stage_3" / "optimizer" / "rank0"
        files.mkdir(parents=True)
        (files / "0.tensor.swp").write_bytes(b"1")
    assert list(config.nvme_folder.iterdir()) == []
    # What a killed run left behind, of other ranks too.
    (one / "zero_stage_3" / "optimizer" / "rank7").mkdir(parents=True)
    with swap_folder(config, runs[0], Ranks()) as again:
        assert again == one and list(one.iterdir()) == []


def test_a_thread_waits_for_the_gpu_of_its_rank(monkeypatch):
    """The thread that writes a checkpoint has no current device."""
    from deepspeed.accelerator import get_accelerator

    accelerator, waited = get_accelerator(), []
    zero = SimpleNamespace(
        _optimizer_states_and_gradient_swap_in=lambda group, names: None,
        _DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition={},
        fp16_groups=[[SimpleNamespace(ds_id=0)]],
        fp32_partitioned_groups_flat=[torch.zeros(2)],
        optimizer_swapper=SimpleNamespace(),
    )
    zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition[0] = torch.ones(2)
    monkeypatch.setattr(accelerator, "synchronize", waited.append)
    monkeypatch.setattr(accelerator, "current_device_name", lambda: "cuda:3")
    keep_gradients(zero)
    monkeypatch.setattr(accelerator, "current_device_name", lambda: "cuda:0")
    zero._optimizer_states_and_gradient_swap_in(0)
    assert waited == ["cuda:3"]


def test_a_gpu_machine_without_the_cuda_toolkit_is_refused(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    with pytest.raises(UserError, match=r"needs the CUDA toolkit.*12\.8.*CUDA_HOME"):
        compile_swapping()


def test_an_unusable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"nvme_folder: .*Not a directory"),
        swap_folder(configured(tmp_path / "file"), tmp_path, Ranks()),
    ):
        pass


def test_states_that_do_not_fit_on_the_disk_are_refused(tmp_path):
    large = {"params": [torch.empty(10**15, device="meta")]}
    with pytest.raises(UserError, match=r"nvme_folder: optimizer states take 6000000\.0 GB per node"):
        check_room(tmp_path, [large], 2, 1)


def test_a_run_has_the_losses_of_a_bare_torch_loop_and_leaves_no_files(tmp_path):
    data, run, folder = render(tmp_path / "data"), tmp_path / "run", tmp_path / "nvme"
    settings = {"parallel.offload_optimizer": "nvme", "parallel.nvme_folder": folder}
    done = train(run, data, 5, "--processes", "2", "--phases", "warm-up", **settings)
    assert done.returncode == 0, done.stderr
    _, losses, norms = next(bare_losses(data, run, 5))
    assert list(metrics(run, "warm-up").values()) == pytest.approx(losses, abs=1e-5)
    assert list(metrics(run, "warm-up", "grad_norm").values()) == pytest.approx(norms, rel=1e-4)
    assert list(folder.iterdir()) == []
