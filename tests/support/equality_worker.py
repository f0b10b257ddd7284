"""One rank of the equality tests: the phases of a run, at each ZeRO stage one after the other."""

import json
import sys
from pathlib import Path


def main() -> None:
    """argv[1]: a run's YAML; argv[2]: where the runs go; argv[3]: stages, overrides, `resume` and `phases`, as JSON."""
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
    job = json.loads(sys.argv[3])
    for stage in job["stages"]:
        config = load_run(sys.argv[1], [*job["overrides"], f"parallel.zero_stage={stage}"])
        topology = create_topology(config.parallel, ranks)
        folder = RunFolder(Path(sys.argv[2]) / str(stage))
        with raise_on_all_ranks():
            if ranks.rank == 0:
                prepare(folder, config)
        tracker = open_tracker(config, folder, topology, "here") if ranks.rank == 0 else None
        for name in job.get("phases", config.phases):
            run_phase(config, name, folder, topology, tracker, StopRequest(), resume=job.get("resume", False))
        if tracker is not None:
            tracker.finish("FINISHED")
    shutdown()


if __name__ == "__main__":
    main()
