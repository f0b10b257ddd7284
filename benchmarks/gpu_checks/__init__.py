"""The checks of `benchmarks/gpu_check.py`, one module each: `check(setting)` returns its figures.

It raises Wrong if the machine does not do what it should, and NotHere if the check is impossible on it.
"""
