"""Which ranks wrote what a reader needs: found by arithmetic, for any number of ranks and any two ways to cut."""

import json

import numpy as np
import pytest

from onediff.parallel.block import Block, BlockRange, overlaps
from onediff.parallel.safetensors_writer import Written
from onediff.training.checkpoint.files import Files, file_of, stamp
from onediff.training.checkpoint.manifest import CheckpointManifest, StoredParameter, read_manifest
from onediff.training.checkpoint.save import filled
from onediff.training.checkpoint.table import RankTable, merged_row, near, runs_of

SHAPES = ((24, 10), (7, 3, 4), (96,), ())


def shares(shape: tuple[int, ...], dim: int, tensor: int, data: int) -> list[BlockRange]:
    """What each rank holds of a parameter that is cut into `tensor` blocks, and each block over `data` ranks."""
    found = []
    for rank in range(tensor * data):
        if tensor > 1:
            size = shape[dim] // tensor
            block = Block(shape, dim, size * (rank % tensor), size)
        else:
            block = Block.whole(shape)
        share = -(-block.real // data)
        offset = min(share * (rank // tensor), block.real)
        found.append(BlockRange(block, offset, min(share, block.real - offset)))
    return found


def rows_of(ranges: list[BlockRange]) -> np.ndarray:
    return np.array([(one.block.start, one.block.size, one.offset, one.length) for one in ranges])


@pytest.mark.parametrize("written", [(1, 40), (2, 20), (2, 3)])
@pytest.mark.parametrize("read", [(1, 1), (1, 5), (2, 2)])
def test_a_reader_finds_what_overlaps_and_little_else(written, read):
    for shape in SHAPES:
        for dim in range(len(shape) or 1):
            if any(tensor > 1 and (not shape or shape[dim] % tensor) for tensor, _ in (written, read)):
                continue
            ranges, files = shares(shape, dim, *written), [f"rank {rank}" for rank in range(written[0] * written[1])]
            pieces, runs = runs_of(rows_of(ranges), files)
            cut = ranges[0].block.dim
            for target in shares(shape, dim, *read):
                wanted = {(file, one) for file, one in zip(files, ranges, strict=True) if any(overlaps(one, target))}
                found = set(near(shape, cut, pieces, runs, files, target))
                assert wanted <= found, (shape, dim, target)
                assert sum(o.rows * o.columns for _, one in found for o in overlaps(one, target)) == target.length


def test_a_thousand_ranks_are_a_line_of_the_manifest(tmp_path):
    ranges = shares((4096, 64), 0, 2, 512)
    rows = np.concatenate([rows_of(ranges), np.full((1024, 1), 7), np.zeros((1024, 1), dtype=int)], 1)
    tables = [RankTable(row[None], [("weight", "exp_avg")]) for row in rows]
    tables[0].rows[0, 4] = -1  # one rank does not count its steps
    blank = {"w": StoredParameter((4096, 64), "float32", 0, [], None, [])}
    names = [file_of(rank, 1024) for rank in range(1024)]
    (counted,) = np.stack([table.counted() for table in tables], axis=1)
    found = filled(blank, [merged_row(counted, names)], [table.states for table in tables])
    (parameter,) = found.values()
    assert (parameter.states, parameter.steps) == (["weight", "exp_avg"], 7)
    assert not parameter.pieces and [run.ranges for run in parameter.runs] == [512, 512]

    written = [Written(10**10 + rank, f"{rank:064x}") for rank in range(1024)]
    files = Files.of_stamps(b"".join(map(stamp, written)))
    manifest = CheckpointManifest("x", 1, 1024, 2, 3, {}, [], found, files=files)
    manifest.write(tmp_path)
    assert (tmp_path / "manifest.json").stat().st_size < 100_000
    assert dict(read_manifest(tmp_path).files) == dict(zip(names, written, strict=True))
    # As versions before wrote it: a record a file.
    old = manifest.to_json() | {"files": {name: one._asdict() for name, one in files.items()}, "schema": 2}
    (tmp_path / "manifest.json").write_text(json.dumps(old, default=vars))
    assert read_manifest(tmp_path).parameters["w"].runs == parameter.runs
    assert dict(read_manifest(tmp_path).files) == dict(files)
