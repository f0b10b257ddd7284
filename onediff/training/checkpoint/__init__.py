"""Checkpoints that are saved at one topology and ZeRO stage and can be resumed at any other."""

from onediff.training.checkpoint.folder import best_checkpoint, checkpoints, latest_checkpoint
from onediff.training.checkpoint.load import load_checkpoint, load_weights, read_weights
from onediff.training.checkpoint.manifest import read_manifest, verify_checkpoint
from onediff.training.checkpoint.save import CheckpointWriter

__all__ = [
    "CheckpointWriter",
    "best_checkpoint",
    "checkpoints",
    "latest_checkpoint",
    "load_checkpoint",
    "load_weights",
    "read_manifest",
    "read_weights",
    "verify_checkpoint",
]
