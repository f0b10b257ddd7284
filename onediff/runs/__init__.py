"""Runs on disk: the contents of a run's folder, and the addresses of its weights. Needs no torch."""
