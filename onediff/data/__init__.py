"""The data stream: samples, manifests, lanes, packing, loading."""
