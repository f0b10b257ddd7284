"""CLEVR-Change: semantic changes, distractors, both together, and each change type.

Source: Park, Darrell and Rohrbach, "Robust Change Captioning", ICCV 2019 (https://arxiv.org/abs/1901.02527); the split
and `type_mapping.json` of https://github.com/Seth-Park/RobustChangeCaptioning, whose evaluation is followed.

- Pairs: each scene of the test split counts twice: with its changed image, and with its distractor (another viewpoint,
  nothing changed). The headline score is `total`, over both.
- Groups: `semantic` (color, material, add, drop, move) and `distractor` (none) are scored as corpora of their own, and
  so is each type. CIDEr's document frequencies are those of the group, so the groups do not average to the total.
- References: each sentence is one. No published sentence is empty; an empty one is refused.
- Ids: the two pairs of a scene need different ids (the original files write `000000.png` and `000000.png_n`).
"""

from onediff.evaluation.protocols.protocol import Protocol

SEMANTIC = ("color", "material", "add", "drop", "move")

PROTOCOL = Protocol(
    name="clevr-change",
    title="CLEVR-Change",
    source="https://arxiv.org/abs/1901.02527, https://github.com/Seth-Park/RobustChangeCaptioning",
    split="test",
    pairs="changed pairs and distractors of the test split together; `change_type` of distractors is none",
    groups={"semantic": (*SEMANTIC, "change"), "distractor": ("none",)},
    task="solids",
    instruction="What has changed in this scene of simple solids, seen a second time?",
)
