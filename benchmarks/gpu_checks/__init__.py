"""What `benchmarks/gpu_check.py` checks, one module a check: `check(setting)` returns its figures.

It raises Wrong when the machine does something else than it should, and NotHere for what cannot be checked on it.
"""
