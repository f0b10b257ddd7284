"""Keeps libraries' notes for developers out of users' terminals and logs."""

from __future__ import annotations

import os
import warnings


def quiet_libraries() -> None:
    """Silences messages that users cannot act on.

    DeepSpeed's note on having no GPU, torch's on DeepSpeed's calls, Megatron's on absent packages, and transformers'
    progress bars while it reads files.
    """
    import torch
    from transformers.utils import logging

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
    # Megatron-core warns at import that Transformer Engine and Apex are absent; it works without them.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")
    logging.disable_progress_bar()
