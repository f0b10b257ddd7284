"""Birds-to-Words: a paragraph that compares two birds.

Source: Forbes, Kaeser-Chen, Sharma and Belongie, "Neural Naturalist: Generating Fine-Grained Image Comparisons", EMNLP
2019 (https://arxiv.org/abs/1909.04101); data at https://github.com/google-research-datasets/birds-to-words.

- Pairs: the test split; a row of the table is one description, so a pair has as many references as rows.
- References: each paragraph is one reference, however many sentences it has. The two birds are called `animal1` and
  `animal2`, which are words like any other.
- Empty descriptions are left out; a pair with no other description does not count.
- The paper prints CIDEr-D, which is `CIDEr` here and in pycocoevalcap.
"""

from onediff.evaluation.protocols.protocol import Protocol, Published

PROTOCOL = Protocol(
    name="birds-to-words",
    title="Birds-to-Words",
    source="https://arxiv.org/abs/1909.04101, https://github.com/google-research-datasets/birds-to-words",
    split="test",
    pairs="every pair of the test split that has a description",
    empty_references="drop",
    task="birds",
    instruction="Describe how the two birds differ.",
    published=(Published("OneDiff", {"CIDEr": 0.284}, "https://arxiv.org/abs/2407.05645"),),
)
