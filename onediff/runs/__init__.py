"""Runs on disk: what lies in a run's folder, and how its weights are named. Needs no torch."""
