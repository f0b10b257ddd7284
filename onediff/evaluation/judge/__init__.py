"""A language model compares captions with references, for captions that no grammar can read.

`marks.py` asks for two marks per pair; `claims.py` splits captions into atomic claims and matches each with the list of
true changes. Both depend on the judging model and its prompts, so they never appear in the table of metrics.
"""
