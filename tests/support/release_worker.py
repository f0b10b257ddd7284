"""Runs two phases in one process, and writes what is alive of the first when the second begins, as JSON.

Arguments: the run folder, the file to write, and overrides of configs/demo.yaml.
"""

import gc
import json
import sys
import weakref
from pathlib import Path

import torch

from onediff.config.compose import load_run
from onediff.training import phase, run
from onediff.training.engine import Engine

held, found = [], []


class Watched(Engine):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        engine = self.sharded.deepspeed
        parts = {"engine": engine, "module": engine.module, "optimizer": engine.optimizer}
        parts |= dict(engine.module.named_parameters())
        held.extend((name, weakref.ref(part)) for name, part in parts.items())


def alive_bytes():
    """Bytes of all tensors known to the garbage collector, each storage counted once."""
    tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor) and not thing.is_meta]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def watched(*arguments, **named):
    found.append(
        {
            "alive": [name for name, part in held if part() is not None],
            "bytes": alive_bytes(),
            "linear": torch.nn.functional.linear.__module__,
        }
    )
    return built(*arguments, **named)


built, phase.starting_model, phase.Engine = phase.starting_model, watched, Watched
path, out, *overrides = sys.argv[1:]
code = run.train(load_run("configs/demo.yaml", overrides), Path(path), ["warm-up", "one"], False)
Path(out).write_text(json.dumps(found))
sys.exit(code)
