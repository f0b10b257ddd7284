"""Data loading: samples, manifests, lanes, packing, batches."""
