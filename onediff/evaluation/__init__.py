"""Evaluation: generation, metrics, protocols, reports."""
