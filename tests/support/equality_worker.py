"""One rank of the equality tests: both phases of a run at T = argv[1], at each ZeRO stage one after the other."""

import json
import sys
from pathlib import Path


def main() -> None:
    """argv[2]: a run's YAML; argv[3]: where the runs go; argv[4]: ZeRO stages and overrides, as JSON."""
    from onediff.config.compose import load_run
    from onediff.parallel.agreement import raise_on_all_ranks
    from onediff.parallel.ranks import initialize_distributed, shutdown
    from onediff.parallel.topology import create_topology
    from onediff.runs.folder import RunFolder
    from onediff.training.prepare import prepare
    from onediff.training.record import open_tracker
    from onediff.training.run_phase import run_phase
    from onediff.training.stop import StopRequest

    ranks = initialize_distributed()
    job = json.loads(sys.argv[4])
    for stage in job["stages"]:
        words = [*job["overrides"], f"parallel.tensor={sys.argv[1]}", f"parallel.zero_stage={stage}"]
        config = load_run(sys.argv[2], words)
        topology = create_topology(config.parallel, ranks)
        folder = RunFolder(Path(sys.argv[3]) / str(stage))
        with raise_on_all_ranks():
            if ranks.rank == 0:
                prepare(folder, config)
        tracker = open_tracker(config, folder, topology, "here") if ranks.rank == 0 else None
        for name in config.phases:
            run_phase(config, name, folder, topology, tracker, StopRequest(), resume=False)
        if tracker is not None:
            tracker.finish("FINISHED")
    shutdown()


if __name__ == "__main__":
    main()
