"""Both phases of a complete model at every (T, C, D) and ZeRO stage: the same losses, gradient norms and weights."""

from pathlib import Path

import equality
import pytest
from small_run import render

STEPS = 20
# In a global batch. A trained model that reads what a random projector makes amplifies: of some rows its gradient's norm
# follows a last bit of the weights with a hundredfold of it, so that there are more rows to share the norm.
ROWS = {"demo": 4, "stories260K": 16}
TOPOLOGIES = (
    (1, 1, 1),
    (1, 1, 2),
    (2, 1, 1),
    (2, 1, 2),
    (4, 1, 1),
    (1, 1, 4),
    (1, 2, 1),
    (1, 4, 1),
    (2, 2, 1),
    (1, 2, 2),
)


@pytest.mark.long
@pytest.mark.parametrize("pack", [None, 256], ids=["unpacked", "packed"])
@pytest.mark.parametrize("language", ["demo", "stories260K"])
def test_both_phases_are_the_same_at_every_topology_and_stage(language, pack, real_data, tmp_path):
    rows = ROWS[language]
    data = render(tmp_path / "data", 15 * rows, 15 * rows)
    config = equality.configuration(tmp_path, STEPS, rows, pack)
    words = equality.overrides(data)
    if language != "demo":
        # Once clipped, many of its gradients are small: where they are, steps are to be small as well.
        words += [f"model.language.name={real_data / language}", "model.language.config=null", "optimizer.eps=1e-3"]
    reference: Path | None = None
    worst = {"loss": 0.0, "norm": 0.0, "weights": 0.0}
    for tensor, context, ranks in TOPOLOGIES:
        runs = tmp_path / f"{tensor}x{context}x{ranks}"
        here = [f"phases.{phase}.micro_batch={rows // ranks}" for phase in equality.PHASES]
        here += [f"parallel.tensor={tensor}", f"parallel.context={context}"]
        equality.run(config, runs, tensor * context * ranks, words + here, [0, 1, 2, 3])
        reference = reference or runs / "0"
        for stage in range(4):
            for phase in equality.PHASES:
                found = equality.difference(runs / str(stage), reference, phase, STEPS)
                worst = {what: max(value, found[what]) for what, value in worst.items()}
        print(f"T={tensor} C={context} D={ranks}, ZeRO 0 to 3, worst so far: {worst}", flush=True)
        assert max(worst.values()) <= 1e-5, f"T={tensor} C={context} D={ranks}"
