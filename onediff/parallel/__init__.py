"""Data, tensor and context parallelism: process groups, sharded layers, loading and exporting weights."""
