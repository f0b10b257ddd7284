"""What `benchmarks/gpu.py` measures, one module a part. Each part is a generator of records, run in a process of its own."""
