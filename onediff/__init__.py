"""OneDiff: a generalist model that describes how two similar images differ (Hu et al., ACCV 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from onediff.evaluation.captioner import Captioner

__version__ = "0.1.0"


def load(folder: str | Path, device: str | None = None) -> Captioner:
    """Loads a trained model from a folder written by `onediff export`, or from a hub repository `OWNER/NAME`.

    `onediff.load(DIR).caption("a.png", "b.png")`. Raises UserError if it is neither.
    """
    import warnings

    from onediff.hub.share import is_repository, pulled

    if is_repository(str(folder)):
        folder = pulled(str(folder))

    with warnings.catch_warnings():
        # Imported libraries warn about optional packages that captioning does not need.
        warnings.simplefilter("ignore")
        from onediff.evaluation.captioner import Captioner

    return Captioner(folder, device)
