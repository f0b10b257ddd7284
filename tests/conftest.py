"""What every test module shares: the folder of real data, a quiet environment for child processes, markers by what a test
needs, and the order in which files are run."""

import os
import re
import signal
from functools import cache
from pathlib import Path

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and every process that they start, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Several ranks share the cores in most tests; one thread each is both faster and repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real public data named by ONEDIFF_REAL_DATA; the test is skipped if there is none."""
    folder = Path(os.environ.get("ONEDIFF_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set ONEDIFF_REAL_DATA to a folder that holds it")
    return folder


NEEDS = {
    "slurm": {"slurm_cluster"},
    "mlflow": {"mlflow_server", "mlflow"},
    "java": {"onediff.evaluation.java", "onediff.evaluation.metrics.meteor"},
    "browser": {"browser"},
    "ranks": {"processes", "small_run", "forked"},
}
"""Marker → the modules by whose import a test module shows that it needs such a thing."""

SLOW = {
    "cli/test_fetch.py": set(),
    "config/test_config_compose.py": {"test_round_trip"},
    "data/test_loader.py": {
        "test_a_killed_rank_takes_its_workers_with_it",
        "test_a_stored_exception_does_not_keep_the_rank_alive",
        "test_an_uncaught_exception_ends_the_rank_and_its_workers",
        "test_every_worker_makes_rows_for_any_size_of_the_micro_batch",
    },
    "data/test_order.py": {"test_global_batches_are_the_same_wherever_a_run_stops_and_however_it_resumes"},
    "data/test_position.py": {"test_round_trip"},
    "data/test_remote.py": {"test_processes_share_the_cache"},
    "data/test_stream.py": {"test_a_thousand_mutations_of_a_shard"},
    "data_prep/test_build.py": {"test_what_is_there_is_built_and_a_second_run_costs_nothing"},
    "data_prep/test_captioning.py": {"test_an_interrupted_run_goes_on_and_asks_nothing_twice"},
    "data_prep/test_compose.py": {"test_the_change_is_recovered_from_masks_and_pixels"},
    "data_prep/test_scenes_data.py": {"test_the_number_of_processes_changes_no_byte"},
    "data_prep/test_workers.py": set(),
    "data_prep/test_writer.py": {
        "test_sigkill_at_random_moments_and_a_rerun_give_the_same_bytes",
        "test_two_writers_do_not_share_a_folder",
    },
    "end_to_end/test_public_models.py": set(),
    "evaluation/test_report.py": {"test_of_many_pairs_one_page_is_drawn"},
    "evaluation/test_score.py": {"test_published_scores_from_shuffled_files_with_repeated_images_and_mixed_ids"},
    "hub/test_huggingface.py": set(),
    "launcher/test_all_reduce.py": set(),
    "launcher/test_ends.py": {"test_a_blamed_node_has_failed_by_itself_or_was_heard_of_no_more"},
    "launcher/test_flight.py": {"test_a_run_is_explained_by_the_rank_that_did_not_arrive"},
    "launcher/test_ready.py": set(),
    "model/test_paper_model.py": set(),
    "plan/test_plan.py": {
        "test_adapters_and_last_layers_are_counted_as_trained",
        "test_planned_memory_is_within_eight_per_cent_of_measured_memory",
        "test_the_command_prints_every_phase_and_writes_every_figure",
        "test_the_suggestion_fits_divides_the_batch_and_is_not_slower",
    },
    "plan/test_plan_flops.py": set(),
    "project/test_documented_commands.py": set(),
    "project/test_gpu_benchmark.py": set(),
    "project/test_packaging.py": {
        "test_an_installed_command_finds_its_configurations_outside_the_checkout",
        "test_configurations_and_templates_travel_in_the_wheel",
    },
    "project/test_pythons.py": set(),
    "tracking/test_moved.py": {"test_a_folder_of_runs_that_was_moved_keeps_its_artifacts"},
    "tracking/test_tracking.py": {
        "test_embedded_store",
        "test_superseded",
        "test_a_model_is_registered_in_the_store_beside_the_runs_and_nowhere_else",
    },
}
"""Tests that take seconds of processor time, by file; all of a file where none is named."""

FIRST = [
    "launcher/test_launch_slurm_faults.py",
    "parallel/test_tensor_parallel.py",
    "training/test_resume.py",
    "training/test_validation.py",
    "tracking/test_tracking_server.py",
    "training/test_engine.py",
    "evaluation/test_evaluate.py",
    "launcher/test_launch_slurm.py",
    "evaluation/test_metrics.py",
    "evaluation/test_generate.py",
    "launcher/test_launch_slurm_commands.py",
    "end_to_end/test_own_pairs.py",
    "end_to_end/test_tiles_run.py",
    "tracking/test_tracking_apart.py",
    "project/test_pythons.py",
    "project/test_gpu_benchmark.py",
    "data/test_order.py",
    "training/test_checkpoint.py",
    "tracking/test_tracking_training.py",
    "launcher/test_launch_restart.py",
    "training/test_lora_run.py",
    "training/test_guard.py",
    "data_prep/test_workers.py",
    "training/test_no_waiting.py",
    "training/test_init.py",
    "data/test_loader.py",
    "evaluation/test_score.py",
    "cli/test_cli.py",
    "end_to_end/test_demo.py",
    "plan/test_plan_flops.py",
    "model/test_paper_model.py",
]
"""The files that take longest, so that no worker is left with one of them at the end.

Those that mostly wait for daemons stand apart, so that the others have the cores meanwhile.
"""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skips a file if `-m` excludes all its tests, since importing it may cost each worker a second of processor time."""
    if not collection_path.match("test_*.py"):
        return None
    return bool(_of_file(collection_path) & _excluded(config.option.markexpr)) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by what they need, and puts the files that take longest first."""
    place = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(_name(item.path), len(place)))
    for item in items:
        markers = {*_of_file(item.path), *_of_fixtures(item)}
        if getattr(item, "originalname", item.name) in SLOW.get(_name(item.path), ()):
            markers.add("slow")
        for marker in sorted(markers):
            item.add_marker(marker)


def _name(path: Path) -> str:
    """A test module as SLOW and FIRST name it."""
    return path.relative_to(Path(__file__).parent).as_posix()


def _excluded(expression: str) -> set[str]:
    """The markers that no selected test has: b of `a and not b`, none of an expression with `or` or parentheses."""
    return set() if re.search(r"\bor\b|[()]", expression) else set(re.findall(r"\bnot (\w+)", expression))


@cache
def _of_file(path: Path) -> frozenset[str]:
    """The markers of every test of a module, by its text."""
    modules = set(re.findall(r"^(?:from|import) ([\w.]+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    markers = {marker for marker, needed in NEEDS.items() if modules & needed}
    return frozenset(markers | ({"slow"} if SLOW.get(_name(path)) == set() else set()))


def _of_fixtures(item: pytest.Item) -> set[str]:
    """The markers of what the fixtures of a folder's conftest.py start."""
    markers = {"cluster": "slurm", "launched": "slurm"}
    if item.path.parent.name == "tracking":
        markers["server"] = "mlflow"
    return {markers[name] for name in getattr(item, "fixturenames", ()) if name in markers}
