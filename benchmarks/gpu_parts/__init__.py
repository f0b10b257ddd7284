"""The parts of `benchmarks/gpu.py`, one module each. A part is a generator of records and runs in its own process."""
