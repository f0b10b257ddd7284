"""Spot-the-Diff with several references: the rules of the published test predictions.

Source: Jhamtani and Berg-Kirkpatrick, "Learning to Describe Differences Between Pairs of Similar Images", EMNLP 2018
(https://arxiv.org/abs/1808.10584); data, predictions and scores at https://github.com/harsh19/spot-the-diff.

- Pairs: the 1,270 pairs of the published reference file of the test split.
- References: each sentence of a pair is one. A model that writes one sentence is not penalised for stating one change of
  many; a model that states them all is penalised by metrics without a brevity penalty. That is why the joined variant has
  another name.
- Repeated ids: the reference file lists an image once for each sentence; that is one pair.
- Empty references: the file has pairs whose only sentence is empty. They count, as in the published scores; leaving them
  out raises every score.
- Tokens: pycocoevalcap's PTBTokenizer. These rules give the published scores of the DDLA predictions to three digits.
- Other work: the reference file that CLIP4IDC publishes (https://github.com/sushizixin/CLIP4IDC, `gt/`) has the same 1,270
  pairs with the same sentences in the same order, the seven empty ones included.
"""

from onediff.evaluation.protocols.protocol import Protocol, Published

PROTOCOL = Protocol(
    name="spot-the-diff",
    title="Spot-the-Diff, several references",
    source="https://arxiv.org/abs/1808.10584, https://github.com/harsh19/spot-the-diff",
    split="test",
    pairs="all 1,270 pairs of the published reference file, pairs with an empty reference included",
    references="all",
    empty_references="keep",
    task="surveillance",
    instruction="What has changed between these two frames of a surveillance camera?",
    checked="published predictions (DDLA) give their published scores to three digits; CLIP4IDC has the same references",
    published=(
        Published(
            "DDLA",
            {
                "BLEU-1": 0.296,
                "BLEU-2": 0.187,
                "BLEU-3": 0.118,
                "BLEU-4": 0.076,
                "METEOR": 0.109,
                "ROUGE-L": 0.280,
                "CIDEr": 0.351,
            },
            "https://github.com/harsh19/spot-the-diff",
        ),
        Published("OneDiff", {"CIDEr": 0.566}, "https://arxiv.org/abs/2407.05645"),
        Published("M3Diff", {"CIDEr": 0.711}, "https://arxiv.org/abs/2503.11093"),
    ),
)
