"""Spot-the-Diff with one reference per pair: all of its sentences as one text.

Source: the data of Jhamtani and Berg-Kirkpatrick (https://arxiv.org/abs/1808.10584), whose annotators wrote one sentence
for each change, so only all of them together describe a pair; and the reference file that Tu et al., "Context-aware
Difference Distilling for Multi-change Captioning", ACL 2024, publish (https://github.com/tuyunbin/CARD). These rules
reproduce that file's texts from the original annotations for all of its 1,270 test pairs. Whether other papers score a
model that states every change at once in the same way is not known: look at their reference file before you compare scores.

- Pairs: all 1,270 pairs of the test split.
- References: the sentences in the order of the file, joined by ". ", cut after 60 words. Another order is another reference.
- Repeated ids: a pair that was annotated twice has the sentences of both in its text.
- Empty references: seven pairs have no sentence. They count, with an empty text.
- The scores are far from those with several references, in both directions: never put the two in one table.
"""

from onediff.evaluation.protocols.protocol import Protocol

PROTOCOL = Protocol(
    name="spot-the-diff-joined",
    title="Spot-the-Diff, joined reference",
    source="https://arxiv.org/abs/1808.10584, https://github.com/tuyunbin/CARD",
    split="test",
    pairs="all 1,270 pairs of the test split, those without a sentence included",
    references="joined",
    longest=60,
    empty_references="keep",
    repeated_ids="sentences of one id are joined in the order of the file",
    task="surveillance",
    instruction="What has changed between these two frames of a surveillance camera?",
    checked="all 1,270 texts are those of the reference file that CARD publishes; other papers may score otherwise",
)
