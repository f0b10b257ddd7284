"""Raw data sets in their own layouts to WebDataset shards. Nothing here imports torch at import time."""
