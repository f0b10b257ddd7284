"""Writes a model of 2 GB in several files to argv[1], and measures the memory that one of four ranks needs to read it.

argv[2] is the format of the files, `safetensors` or `bin`.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch


def make(folder: Path, form: str) -> int:
    """Writes the model file by file; returns its size in bytes."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from onediff.parallel.safetensors_writer import Entry, write_safetensors

    config = LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=10, num_attention_heads=16, vocab_size=32000
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    names, files = list(shapes), {}
    stem = {"safetensors": "model", "bin": "pytorch_model"}[form]
    for number in range(4):
        mine = names[number::4]
        file = f"{stem}-{number + 1:05d}-of-00004.{form}"
        if form == "bin":
            torch.save({name: torch.randn(shapes[name]) for name in mine}, folder / file)
        else:
            entries = [Entry(n, torch.float32, shapes[n], lambda n=n: torch.randn(shapes[n])) for n in mine]
            write_safetensors(folder / file, entries, {"format": "pt"})
        files |= dict.fromkeys(mine, file)
    (folder / f"{stem}.{form}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return sum(path.stat().st_size for path in folder.glob(f"*.{form}"))


def read(folder: Path, rank: int) -> int:
    """Peak memory of the process, in bytes above its initial memory, for reading as rank `rank` of four."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from onediff.parallel.block import Block
    from onediff.parallel.materialize import place
    from onediff.parallel.pretrained import Pretrained
    from onediff.parallel.pretrained_files import PretrainedFiles
    from onediff.parallel.topology import Topology
    from onediff.ranks import Ranks

    architecture = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture, dtype=torch.float32)
        source = Pretrained(PretrainedFiles(str(folder)), model)
        # Cut by hand along what `cut_layers` would cut along, so that one process alone can stand for a rank.
        for module in list(model.modules()):
            for key, parameter in list(module.named_parameters(recurse=False)):
                if parameter.ndim == 2:
                    dim = 1 if parameter.shape[0] == 2048 and parameter.shape[1] != 2048 else 0
                    block = Block(
                        tuple(parameter.shape), dim, rank * parameter.shape[dim] // 4, parameter.shape[dim] // 4
                    )
                    shape = [block.size if along == dim else size for along, size in enumerate(block.shape)]
                    part = torch.nn.Parameter(torch.empty(shape))
                    part.block = block
                    setattr(module, key, part)
    Path("/proc/self/clear_refs").write_text(
        "5"
    )  # the peak starts over: it would be the parent's at its fork, if larger
    before = peak()
    place(model, source, Topology(Ranks(), 1, None))
    return peak() - before


def peak() -> int:
    """The peak memory of this process in bytes, including pages of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(read(Path(sys.argv[1]), int(sys.argv[3])))
    else:
        size = make(Path(sys.argv[1]), sys.argv[2])
        commands = [[sys.executable, __file__, *sys.argv[1:3], str(rank)] for rank in (0, 3)]
        outputs = [subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in commands]
        print(json.dumps({"model": size, "ranks": [int(out.splitlines()[-1]) for out in outputs]}))
