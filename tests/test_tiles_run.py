"""A run whose pictures are seen in tiles, or in their own shape, from shards to a caption; the same on any ranks."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import yaml
from streams import WORDS, add

from tests.small_run import onediff

WORKER = Path(__file__).with_name("equality_worker.py")
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
    "tiles": {"config": CLIP, "picture": {"size": 32, "fit": "tiles", "max_tiles": 4}},
    "native": {"config": NAFLEX, "picture": {"fit": "native", "max_patches": 40}},
}


def png(size: tuple[int, int], seed: int) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    drawn = np.random.default_rng(seed).integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8)
    Image.fromarray(drawn).resize(size).save(out, "PNG")
    return out.getvalue()


def write_sets(folder: Path) -> Path:
    """Pairs, single pictures and texts of many shapes; the pictures of every fourth pair differ in size."""
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


def configuration(folder: Path, data: Path, fit: str) -> Path:
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
        "evaluation": {"max_new_tokens": 4},
        "tracking": {"live": False},
    }
    path = folder / f"{fit}.yaml"
    path.write_text(yaml.safe_dump(values))
    model = path.with_name("model.yaml")
    model.unlink(missing_ok=True)
    return path


def overrides(data: Path, fit: str) -> list[str]:
    words = [f"data.sets.{name}={data / name}" for name in ("pairs", "singles")] + ["data.workers=0"]
    tower = TOWERS[fit]
    words += [f"model.vision.config={json.dumps(tower['config'])}", "model.vision.levels=[1,2]"]
    return words + [f"model.vision.picture={json.dumps(tower['picture'])}"]


def test_a_run_in_tiles_from_shards_to_a_caption(tmp_path):
    data = write_sets(tmp_path / "data")
    config, run = configuration(tmp_path, data, "tiles"), tmp_path / "run"
    words = [*overrides(data, "tiles"), "training.sample_captions=2"]
    done = onediff(["train", str(config), *words, "--run", str(run)])
    assert done.returncode == 0, done.stderr
    print(done.stderr[-3000:])
