"""One process that counts where whole optimizer steps wait for the device, at each ZeRO stage."""

import json
import sys
import traceback
from collections import Counter
from pathlib import Path


def main() -> None:
    """argv[1]: where the counts go, as JSON: by stage, by the function that waited."""
    from models import TINY, batch
    from small_run import config

    from benchmarks.counters import Counted
    from onediff.config.model import ModelConfig
    from onediff.parallel.ranks import initialize_distributed, shutdown
    from onediff.parallel.topology import create_topology
    from onediff.training.engine import Engine
    from onediff.training.run import built

    class Located(Counted):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            before = self.waits.total()
            result = super().__torch_dispatch__(function, types, args, kwargs)
            if self.waits.total() > before:
                where[next(frame.name for frame in reversed(traceback.extract_stack()[:-1]) if known(frame))] += 1
            return result

    def known(frame):
        """Leaves out what torch puts between an operator and whoever asks for it."""
        return "torch/_compile" not in frame.filename and "torch/_dynamo" not in frame.filename

    ranks, found = initialize_distributed(), {}
    for stage in range(4):
        run = config(Path("data"), 10, **{"parallel.zero_stage": stage})
        run = run.model_copy(update={"model": ModelConfig.model_validate(TINY)})
        phase = run.phases["two"]
        topology = create_topology(run.parallel, ranks)
        engine = Engine(built(run, run.model, "two", topology, filled_later=False), run, phase, topology)
        micro_batches = [batch("pair", "single"), batch("pair", "pair")]
        engine.step(micro_batches, 0, 10)
        where: Counter[str] = Counter()
        with Located():
            engine.step(micro_batches, 1, 10)
        found[stage] = where
    Path(sys.argv[1]).write_text(json.dumps(found))
    shutdown()


if __name__ == "__main__":
    main()
