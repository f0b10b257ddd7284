"""No benchmark in particular: pycocoevalcap's scores of the two files as they are.

Every pair of the references counts, and every sentence is a reference, even an empty one. Use it for data of your own. Its
scores are comparable only with others on the same references.
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
