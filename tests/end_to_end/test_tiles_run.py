"""A run whose images are seen in tiles, or in their own shape, from shards to a caption; the same on any ranks."""

import io
import json
import tarfile
from pathlib import Path

import equality
import numpy as np
import pytest
import yaml
from PIL import Image
from small_run import metrics, onediff
from streams import WORDS, add

SIZES = [(64, 32), (40, 40), (24, 60), (90, 50), (30, 20)]
STEPS = 3
NAFLEX = {
    "model_type": "siglip2_vision_model",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_patches": 16,
    "patch_size": 8,
}
CLIP = {**NAFLEX, "model_type": "clip_vision_model", "image_size": 32}
TOWERS = {
    "tiles": {"config": CLIP, "image": {"size": 32, "fit": "tiles", "max_tiles": 4}},
    "native": {"config": NAFLEX, "image": {"fit": "native", "max_patches": 40}},
}


def png(size: tuple[int, int], seed: int) -> bytes:
    out = io.BytesIO()
    drawn = np.random.default_rng(seed).integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8)
    Image.fromarray(drawn).resize(size).save(out, "PNG")
    return out.getvalue()


def write_sets(folder: Path) -> Path:
    """Pairs, single images and texts of many shapes; the images of every fourth pair differ in size."""
    words = WORDS.split()
    for name, splits in (("pairs", {"train": 24, "test": 5}), ("singles", {"train": 24})):
        for split, count in splits.items():
            (folder / name / split).mkdir(parents=True)
            with tarfile.open(folder / name / split / "part-0.tar", "w") as tar:
                for number in range(count):
                    size, other = SIZES[number % 5], SIZES[(number + number % 4 // 3) % 5]
                    caption = " ".join(words[number % 7 : number % 7 + 3 + number % 5])
                    record = {"id": f"{split}{number}", "source": name, "task": "t", "captions": [caption]}
                    files = {"before.png": png(size, number), "after.png": png(other, 100 + number)}
                    if name == "singles":
                        files = {"png": png(size, number)} if number % 6 else {}
                    files["json"] = json.dumps({**record, "split": split}).encode()
                    for suffix, data in files.items():
                        add(tar, f"{number:04d}.{suffix}", data)
    return folder


def configuration(folder: Path, fit: str) -> Path:
    """The demo's job with another tower: padded rows in phase one, packed ones in phase two."""
    phase = {"steps": STEPS, "global_batch": 4, "micro_batch": 1, "checkpoint_every": 1000}
    values = {
        "name": fit,
        "model": "models/tiny",
        "data": "data/scenes",
        "optimizer": {"lr": 1e-4, "eps": 1e-6},
        "training": {"precision": "fp32", "sample_captions": 0},
        "phases": {
            "one": {**phase, "mix": {"singles": 1, "pairs": 1}, "train": ["delta", "projector", "vision"]},
            "two": {**phase, "mix": {"pairs": 1}, "pack": 640},
        },
        "tracking": {"live": False},
    }
    path = folder / f"{fit}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def overrides(data: Path, fit: str) -> list[str]:
    tower = TOWERS[fit]
    return [
        *(f"data.sets.{name}={data / name}" for name in ("pairs", "singles")),
        "data.workers=0",
        f"model.vision.config={json.dumps(tower['config'])}",
        f"model.vision.image={json.dumps(tower['image'])}",
        "model.vision.levels=[1,2]",
    ]


def test_a_run_in_tiles_from_shards_to_a_caption(tmp_path):
    """Padded and packed rows, evaluation and a caption of the exported model."""
    data = write_sets(tmp_path / "data")
    config, run = configuration(tmp_path, "tiles"), tmp_path / "run"
    done = onediff(["train", str(config), *overrides(data, "tiles"), "training.sample_captions=2", "--run", str(run)])
    assert done.returncode == 0, done.stderr
    assert [len(metrics(run, phase)) for phase in ("one", "two")] == [STEPS, STEPS]
    done = onediff(["evaluate", str(run), "--data", str(data / "pairs"), "max_new_tokens=4"])
    assert done.returncode == 0, done.stderr
    (captions,) = run.glob("evaluation/*/predictions.jsonl")
    assert len(captions.read_text().splitlines()) == 5
    images = []
    for role, seed in (("before", 0), ("after", 1)):
        images.append(tmp_path / f"{role}.png")
        images[-1].write_bytes(png((300, 150), seed))
    heat = tmp_path / "heat.png"
    words = ["--model", str(run), "--max-new-tokens", "4", "--attention", str(heat)]
    done = onediff(["caption", *map(str, images), *words])
    assert done.returncode == 0 and done.stdout.endswith("\n"), done.stderr
    assert heat.is_file()


@pytest.mark.long
@pytest.mark.parametrize("fit", TOWERS)
def test_images_of_many_shapes_train_the_same_on_any_ranks(fit, tmp_path):
    """Padded and packed rows, ZeRO-3: one process, two with rows of their own, two that share the language model's layers,
    and two that share its tokens."""
    data, found = write_sets(tmp_path / "data"), []
    config = configuration(tmp_path, fit)
    for tensor, context, ranks in ((1, 1, 1), (1, 1, 2), (2, 1, 1), (1, 2, 1)):
        runs = tmp_path / f"{tensor}x{context}x{ranks}"
        words = overrides(data, fit) + [f"phases.{phase}.micro_batch={4 // ranks}" for phase in ("one", "two")]
        words += [f"parallel.tensor={tensor}", f"parallel.context={context}"]
        equality.run(config, runs, tensor * context * ranks, words, [3])
        for name, tolerance in (("loss", {"abs": 1e-5}), ("grad_norm", {"rel": 1e-5})):
            values = [value for phase in ("one", "two") for value in metrics(runs / "3", phase, name).values()]
            assert len(values) == 2 * STEPS
            found.append(values)
            assert values == pytest.approx(found[name == "grad_norm"], **tolerance), (name, tensor, context, ranks)
