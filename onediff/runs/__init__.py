"""Runs on disk: the contents of a run's folder, and how its weights are addressed. Needs no torch."""
