"""Item scores: what captions say, held against the changes that are known.

    found = score(captions, references)   # {id: caption}, {id: a sample's meta}
    found.values["captions right"], found.by_type["replace"]

`grammar.py` reads captions, `known.py` reads what truly changed, `agreement.py` compares the two.
"""

from onediff.evaluation.items.grammar import Item, Reading, read
from onediff.evaluation.items.known import TrueChanges, known
from onediff.evaluation.items.scores import ItemScores, score

__all__ = ["Item", "ItemScores", "Reading", "TrueChanges", "known", "read", "score"]
