"""A language model compares captions with references, for captions that no grammar reads.

`marks.py` asks for two marks a pair; `claims.py` takes captions apart into atomic claims and holds each against the list of
true changes. Both are views of their own: they depend on the judging model and its prompts, so they never stand in the table
of the metrics.
"""
