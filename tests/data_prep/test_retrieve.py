"""data_prep.retrieve: similar images found, near-duplicates left out, by a real (small, random) vision model."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
from raw_data import encoded, put

from data_prep.retrieve import embed, neighbours
from onediff.cli import main


def test_pairs_lie_in_the_band_and_no_image_is_used_too_often() -> None:
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(60, 6))
    vectors[30] = vectors[3] + 1e-4  # A near-duplicate.
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    found = list(neighbours(vectors, 0.6, 0.99, nearest=59, each=2))
    cosines = vectors @ vectors.T
    assert found
    for first, second, similarity in found:
        assert first < second
        assert similarity == pytest.approx(float(cosines[first, second]), abs=1e-5)
        assert 0.6 <= similarity <= 0.99
    assert [s for *_, s in found] == sorted((s for *_, s in found), reverse=True)
    uses = [sum(image in pair[:2] for pair in found) for image in range(60)]
    assert max(uses) <= 2
    assert uses[30] == 0
    everything = {pair[:2] for pair in neighbours(vectors, 0.6, 0.99, nearest=59, each=99)}
    wanted = {
        (i, j) for i, j in itertools.combinations(range(60), 2) if 0.6 <= cosines[i, j] <= 0.99 and 30 not in (i, j)
    }
    assert everything == wanted


def small_vision_model(folder: Path) -> None:
    """A random Dinov2 with its processor, as `from_pretrained` reads them."""
    import torch
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    size = {"height": 28, "width": 28}
    processor = BitImageProcessor(size={"shortest_edge": 28}, crop_size=size)
    processor.save_pretrained(folder)


def test_the_command_with_a_small_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_vision_model(tmp_path / "model")
    for number in range(6):
        put(tmp_path / f"img/sub/{number}.png", encoded(number))
    put(tmp_path / "img/broken.jpg", b"no image")
    put(tmp_path / "img/copy.png", encoded(2))
    vectors, read = embed(tmp_path / "img", ["copy.png", "sub/2.png", "broken.jpg"], str(tmp_path / "model"))
    assert read == ["copy.png", "sub/2.png"]
    assert float(vectors[0] @ vectors[1]) == pytest.approx(1, abs=1e-5)
    words = ["data", "retrieve", str(tmp_path / "img"), "--model", str(tmp_path / "model"), "--out"]
    assert main([*words, str(tmp_path / "p.csv"), "--low", "-1", "--high", "0.9999", "--each", "1"]) == 0
    assert "pairs of 7 images (1 cannot be read)" in capsys.readouterr().out
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert 1 <= len(rows) <= 3
    assert all(float(row["similarity"]) < 0.9999 for row in rows)
    lines = ["image,caption", *(f"sub/{number}.png,scene {number}" for number in range(5))]
    put(tmp_path / "said.csv", "\n".join(lines))
    told = ["--captions", str(tmp_path / "said.csv"), "--low", "-1", "--high", "0.9999", "--each", "5"]
    assert main([*words, str(tmp_path / "told.csv"), *told]) == 0
    assert "pairs without captions left out" in capsys.readouterr().out
    with (tmp_path / "told.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        assert row["caption_before"] == f"scene {Path(row['before']).stem}"
        assert row["caption_after"] == f"scene {Path(row['after']).stem}"
    assert main([*words, str(tmp_path / "q.csv"), "--low", "-1", "--high", "-0.99"]) == 2
    assert "no two images have a similarity from" in capsys.readouterr().err
    assert main(["data", "retrieve", str(tmp_path / "img"), "--model", str(tmp_path), "--out", "x.csv"]) == 2
    assert "cannot be loaded" in capsys.readouterr().err
