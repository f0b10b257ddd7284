"""The file `confidence.npz` of an export."""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onediff.errors import UserError
from onediff.evaluation.confidence.calibration import FEWEST, Calibration, calibration_error
from onediff.evaluation.confidence.familiar import Familiar
from onediff.evaluation.confidence.judged import Judged
from onediff.evaluation.confidence.refusal import RefusalLimit

FILE = "confidence.npz"
ROLES = ("before", "after")


@dataclass(frozen=True)
class Knowledge:
    """A model's calibration and its familiar images."""

    familiar: Familiar
    calibration: Calibration | None
    """None if too few held-out captions were right, or wrong."""
    reliability: NDArray[np.float64]
    """`[bins, 3]`, as of `calibration.reliability`; no bins without calibration."""
    about: str
    """Describes the images that it was trained on."""
    held_out: str
    """Describes the pairs that it was calibrated on."""
    refusal: RefusalLimit | None = None
    """None if it invents changes too rarely on the held-out pairs, or if refusing would not help."""

    def judged(
        self, caption: str, log_probability: float, features: NDArray[np.float32], nothing: float = math.nan
    ) -> Judged:
        """A caption of mean token log-probability `log_probability`, from images with `features` `[2, width]`.

        `nothing` is the log-probability that nothing has changed, if there is a refusal and the caption tells a change.
        """
        far = self.familiar.distances(features) > self.familiar.limit
        if far.any():
            which = "both images are" if far.all() else f"the image {ROLES[int(far.argmax())]} is"
            return Judged(caption, None, f"{which} unlike the model's training images: {self.about}")
        if self.refusal is not None and nothing > self.refusal.limit:
            return Judged(self.refusal.sentences[0], round(self.refusal.share, 3), instead_of=caption)
        if self.calibration is None:
            return Judged(caption)
        return Judged(caption, round(float(self.calibration.confidence(np.array([log_probability]))[0]), 3))

    def as_json(self) -> dict[str, Any]:
        """The measurements as plain values."""
        rows = [dict(zip(("confidence", "right", "pairs"), row, strict=True)) for row in self.reliability.tolist()]
        error = calibration_error(self.reliability) if rows else None
        refusal = None if self.refusal is None else self.refusal.as_json()
        measured = {"calibration_error": error, "reliability": rows, "refusal": refusal}
        return {"about": self.about, "held_out": self.held_out, **measured}

    def lines(self) -> list[str]:
        """The measurements as lines of text."""
        head = [f"measured on {self.held_out}", f"warns about images unlike the model's training images: {self.about}"]
        head += [] if self.refusal is None else self.refusal.lines()
        if self.calibration is None:
            return [*head, f"no confidence: calibration needs {FEWEST} right captions and {FEWEST} wrong ones"]
        bins = [f"{confidence:10.1%} {right:10.1%} {pairs:10.0f}" for confidence, right, pairs in self.reliability]
        error = f"confidence and share right differ by {calibration_error(self.reliability):.1%} on average"
        return [*head, f"{'confidence':>10} {'right':>10} {'pairs':>10}", *bins, error]

    def write(self, folder: Path) -> None:
        """Writes the file into an export."""
        curve = self.calibration or Calibration(np.empty(0), np.empty(0))
        with (folder / FILE).open("wb") as file:
            np.savez_compressed(
                file,
                mean=self.familiar.mean,
                precision=self.familiar.precision,
                limit=np.array(self.familiar.limit),
                log_probabilities=curve.log_probabilities,
                shares=curve.shares,
                reliability=self.reliability,
                about=np.array(self.about),
                held_out=np.array(self.held_out),
                refusal=np.array(json.dumps(None if self.refusal is None else self.refusal.as_json())),
            )

    @classmethod
    def read(cls, folder: Path) -> Knowledge | None:
        """The knowledge in an export; None if there is none. Raises UserError for a damaged file."""
        if not (folder / FILE).is_file():
            return None
        try:
            with np.load(folder / FILE, allow_pickle=False) as kept:
                curve = Calibration(kept["log_probabilities"], kept["shares"])
                return cls(
                    familiar=Familiar(kept["mean"], kept["precision"], float(kept["limit"])),
                    calibration=curve if len(curve.shares) else None,
                    reliability=kept["reliability"],
                    about=str(kept["about"]),
                    held_out=str(kept["held_out"]),
                    refusal=RefusalLimit.of_json(json.loads(str(kept["refusal"]))) if "refusal" in kept else None,
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise UserError(
                f"{folder / FILE}: cannot be read; write it again with `onediff calibrate {folder}`"
            ) from None
