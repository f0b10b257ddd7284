"""No benchmark in particular: what pycocoevalcap makes of the two files as they are.

Every pair of the references counts, every sentence is a reference, empty ones too. Use it for data of your own; a
number under it is comparable with another one of the same references only.
"""

from onediff.evaluation.protocols.protocol import Protocol

PROTOCOL = Protocol(
    name="plain",
    title="References as they are",
    source="https://github.com/salaniz/pycocoevalcap",
    split="test",
    pairs="every pair of the reference file",
    empty_references="keep",
    checked="pycocoevalcap's own classes give the same numbers",
)
