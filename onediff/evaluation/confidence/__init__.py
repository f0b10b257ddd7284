"""How likely a caption is right, and whether its images are like those that the model was trained on.

A model that has learned rendered scenes describes a photograph as fluently as a scene. `onediff calibrate` measures two
things and stores them in the export as `confidence.npz`:

* the vision tower's features of training images, as one Gaussian; an image farther away than 99 of 100 held-out pairs
  is unlike them (Lee et al. 2018, arXiv 1807.03888);
* how often a caption is right at each mean log-probability of its tokens, by isotonic regression over held-out pairs
  (Zadrozny and Elkan 2002).
"""

from onediff.evaluation.confidence.judged import Judged
from onediff.evaluation.confidence.knowledge import FILE, Knowledge

__all__ = ["FILE", "Judged", "Knowledge"]
