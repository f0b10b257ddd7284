"""SPICE (Anderson et al., 2016): F of the tuples in scene graphs, by the jar in pycocoevalcap.

The jar needs Stanford CoreNLP 3.6.0 next to it, which `python -c "from pycocoevalcap.spice.get_stanford_models import
get_stanford_models as get; get()"` fetches once (390 MB), and a Java version that still runs it. If either is missing,
or if Java fails, SPICE is left out and the reason given.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onediff.evaluation.java import JavaProgram
from onediff.evaluation.metrics.metric import Metric, Pairs, Unavailable

OPEN = ("java.base/java.lang", "java.base/java.math", "java.base/java.util", "java.base/java.util.concurrent")
"""Packages that the jar's libraries access by reflection, which Java 9 and later forbid."""


class Spice(Metric):
    """A pair's row: 1, and F. The jar gets the captions as they were written and tokenises them itself."""

    name = "spice"
    scores = shown = ("SPICE",)
    waits = True

    def rows(self, systems: Sequence[Pairs]) -> list[np.ndarray]:
        from pycocoevalcap.spice import spice

        folder = Path(spice.__file__).parent
        if not (folder / "lib" / "stanford-corenlp-3.6.0-models.jar").is_file():
            raise Unavailable(f"it needs Stanford CoreNLP 3.6.0 in {folder / 'lib'} (docs/evaluation.md says how)")
        given = [
            {"image_id": f"{number}", "test": caption, "refs": list(references)}
            for number, (caption, references) in enumerate(
                (caption, references)
                for one in systems
                for caption, references in zip(one.captions, one.references, strict=True)
            )
        ]
        with tempfile.TemporaryDirectory() as work:
            asked, answered = Path(work) / "in.json", Path(work) / "out.json"
            asked.write_text(json.dumps(given), encoding="utf-8")
            opened = [word for package in OPEN for word in ("--add-opens", f"{package}=ALL-UNNAMED")]
            jar = [str(folder / spice.SPICE_JAR), str(asked), "-out", str(answered), "-subset", "-silent"]
            with JavaProgram([*opened, "-Xmx8G", "-jar", *jar], []) as program:
                program.answers(600 + len(given))
            found = {one["image_id"]: one["scores"]["All"]["f"] for one in json.loads(answered.read_text())}
        values = [float(found[one["image_id"]]) for one in given]
        rows = np.array([[1, 0.0 if math.isnan(value) else value] for value in values])
        return np.split(rows, len(systems))


METRIC = Spice()
