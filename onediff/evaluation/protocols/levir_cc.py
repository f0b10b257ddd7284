"""LEVIR-CC: what was built or torn down between two satellite images.

Source: Liu, Zhao, Chen, Zou and Shi, "Remote Sensing Image Change Captioning With Dual-Branch Transformers", IEEE TGRS
2022 (https://doi.org/10.1109/TGRS.2022.3218921); evaluation at https://github.com/Chen-Yang-Liu/RSICC.

- Pairs: the test split, five sentences each. About half of the pairs have no change, stated in one of five fixed ways.
- Groups: `change` and `none` are scored as corpora of their own, in addition to the total.
- References: each sentence is one; none is empty.
- Tokens: the original evaluation uses the data set's own word lists, drops words that occur fewer than five times in
  training from the references too, and does not use PTBTokenizer. Here, the raw sentences are tokenised as everywhere else,
  so a rare word counts against a caption. Compare only with scores under this protocol.
"""

from onediff.evaluation.protocols.protocol import Protocol

PROTOCOL = Protocol(
    name="levir-cc",
    title="LEVIR-CC",
    source="https://doi.org/10.1109/TGRS.2022.3218921, https://github.com/Chen-Yang-Liu/RSICC",
    split="test",
    pairs="every pair of the test split, pairs without a change included",
    task="satellite",
    instruction="Describe the changes between the two satellite images.",
)
