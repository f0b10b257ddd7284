"""Converts raw data sets in their own layouts to WebDataset shards. Does not import torch at import time."""
