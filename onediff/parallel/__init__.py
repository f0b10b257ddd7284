"""Data- and tensor-parallel topology, and weights in and out of it."""
