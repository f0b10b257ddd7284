"""The demo on scenes twice as wide as high, from rendering to a caption: what changes at the left edge is seen."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_run import PHASES, metrics, onediff, train

import onediff as api


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    scenes = folder / "scenes.yaml"
    scenes.write_text(f"{Path('configs/scenes/demo.yaml').read_text()}\nwidth: 128\nheight: 64\n")
    sizes = ["--pairs", "30", "--singles", "20", "--split-sizes", "train=0.8,test=0.2", "--processes", "1"]
    done = onediff(["data", "render", "--scenes", str(scenes), "--out", str(folder / "data"), *sizes])
    assert done.returncode == 0, done.stderr
    told = onediff(["data", "stats", str(folder / "data" / "pairs")], OMP_NUM_THREADS="1")
    assert "`fit: crop` would cut away 50% of each image" in told.stdout
    return folder / "data"


@pytest.mark.long
@pytest.mark.parametrize("fit", ["pad", "tiles"])
def test_the_demo_in_wide_scenes_from_shards_to_a_caption(data, fit, tmp_path):
    run, saved = tmp_path / "run", tmp_path / "saved"
    done = train(run, data, 2, **{"model.vision.image.fit": fit, "data.max_tokens": 512})
    assert done.returncode == 0, done.stderr
    assert all(np.isfinite(list(metrics(run, phase).values())).all() for phase in PHASES)
    done = onediff(["evaluate", str(run)])
    assert done.returncode == 0, done.stderr
    assert "CIDEr" in done.stdout
    done = onediff(["export", str(run), str(saved)])
    assert done.returncode == 0, done.stderr
    before = Image.effect_noise((200, 100), 60).convert("RGB")
    after = before.copy()
    after.paste("red", (0, 30, 30, 70))
    for name, image in (("before", before), ("after", after)):
        image.save(tmp_path / f"{name}.png")
    images = [tmp_path / "before.png", tmp_path / "after.png"]
    words = ["caption", *map(str, images), "--model", str(saved), "--max-new-tokens", "4", "--json"]
    done = onediff([*words, "--attention", str(tmp_path / "map.png")])
    assert done.returncode == 0, done.stderr
    captioner = api.load(saved)
    assert json.loads(done.stdout)["caption"] == captioner.caption(*images, max_new_tokens=4)
    changed, same = captioner.row(*images).images, captioner.row(before, before).images
    assert not changed.equal(same)
    assert np.asarray(Image.open(tmp_path / "map.png")).shape == (100, 404, 3)
