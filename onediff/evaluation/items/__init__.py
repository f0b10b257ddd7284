"""Item scores: what captions say, compared with the known changes.

    found = score(captions, references)   # {id: caption}, {id: a sample's meta}
    found.values["captions right"], found.by_type["replace"]

`grammar.py` parses captions, `known.py` reads the true changes, `agreement.py` compares the two.
"""

from onediff.evaluation.items.grammar import Item, Reading, read
from onediff.evaluation.items.known import TrueChanges, known
from onediff.evaluation.items.scores import ItemScores, score

__all__ = ["Item", "ItemScores", "Reading", "TrueChanges", "known", "read", "score"]
