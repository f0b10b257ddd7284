"""Image-Editing-Request: the instruction that would turn the first image into the second.

Source: Tan, Dernoncourt, Lin, Bui and Bansal, "Expressing Visual Relationships via Language", ACL 2019
(https://arxiv.org/abs/1906.07689); data and evaluation at https://github.com/airsplay/VisualRelationships.

- Pairs: the whole test split; each pair has about three requests by different people.
- References: each request is one, with its case and spelling errors, which are part of the benchmark.
- Empty references do not occur; an empty one is refused.
"""

from onediff.evaluation.protocols.protocol import Protocol, Published

PROTOCOL = Protocol(
    name="image-editing-request",
    title="Image-Editing-Request",
    source="https://arxiv.org/abs/1906.07689, https://github.com/airsplay/VisualRelationships",
    split="test",
    pairs="every pair of the test split",
    task="request",
    instruction="What request would turn the first image into the second?",
    published=(
        Published("OneDiff", {"CIDEr": 1.096}, "https://arxiv.org/abs/2407.05645"),
        Published("M3Diff", {"CIDEr": 1.366}, "https://arxiv.org/abs/2503.11093"),
    ),
)
