"""Spot-the-Diff with one reference: all sentences of a pair as one text.

Source: the data of Jhamtani and Berg-Kirkpatrick (https://arxiv.org/abs/1808.10584), whose annotators wrote one sentence
for each change, so that only all of them together describe a pair. Scores of models that tell every change at once
are computed so. They are far from those with several references, in both directions: never put the two in one table.

- Pairs: the test split, without those that have no sentence.
- References: the sentences in the order of the file, joined by a blank. Another order is another reference.
- Empty sentences are left out before joining.
"""

from onediff.evaluation.protocols.protocol import Protocol

PROTOCOL = Protocol(
    name="spot-the-diff-joined",
    title="Spot-the-Diff, joined reference",
    source="https://arxiv.org/abs/1808.10584, https://github.com/harsh19/spot-the-diff",
    split="test",
    pairs="every pair of the test split that has a sentence",
    references="joined",
    empty_references="drop",
    repeated_ids="sentences of one id are joined in the order of the file",
    task="surveillance",
    instruction="What has changed between these two frames of a surveillance camera?",
)
