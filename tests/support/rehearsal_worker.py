"""One real rank that takes the steps of a rehearsal: argv[1] is a configuration, argv[2] a folder, argv[3:] overrides."""

import json
import sys
from dataclasses import asdict
from pathlib import Path


def main() -> None:
    from onediff.config.compose import load_run
    from onediff.parallel.ranks import initialize_distributed, shutdown
    from onediff.parallel.topology import create_topology
    from onediff.rehearsal import batches
    from onediff.rehearsal.rank import taken

    config = load_run(sys.argv[1], sys.argv[3:])
    ranks = initialize_distributed(tensor=config.parallel.tensor)
    topology = create_topology(config.parallel, ranks)
    played = [
        asdict(taken(config.of_phase(name), name, topology, batches.largest(config, name))) for name in config.phases
    ]
    Path(sys.argv[2], f"{ranks.rank}.json").write_text(json.dumps(played))
    shutdown()


if __name__ == "__main__":
    main()
