"""The lines of `onediff --version`: versions of libraries, the device, and the attention kernels."""

from __future__ import annotations

from onediff import __version__


def version_lines() -> list[str]:
    """The lines. Costs the import of torch, which takes seconds."""
    lines = [f"onediff {__version__}"]
    try:
        import torch
        import transformers
    except ImportError as error:
        return [*lines, f"not complete: {error}"]
    lines.append(f"torch {torch.__version__}, transformers {transformers.__version__}")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        lines.append(f"device: {len(names)} × {names[0]}, CUDA {torch.version.cuda}")
    else:
        lines.append(f"device: CPU, {torch.get_num_threads()} threads")
    from onediff.model.attention import in_use
    from onediff.model.kernels import KERNELS, missing

    there = [name for name in KERNELS if not missing(name)]
    lines.append(f"attention: {in_use()}; flash kernels: {', '.join(there) or 'none'}")
    return lines
