"""BERTScore (Zhang et al., 2020): how well the tokens of a caption and a reference match by meaning.

Each token is paired with the most similar one of the other text, by the cosine of their hidden states at one layer of a
named encoder. The score is F of precision and recall, the best over the references, averaged over pairs, without idf weights
and rescaling, as in `bert-score` by default. The layer is that package's for its tuned models, else the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onediff.evaluation.metrics.kept import Kept, Key
from onediff.evaluation.metrics.metric import Pairs
from onediff.evaluation.metrics.named_model import ModelMetric, short

LAYERS = {
    "bert-base-uncased": 9,
    "bert-large-uncased": 18,
    "roberta-base": 10,
    "roberta-large": 17,
    "distilbert-base-uncased": 5,
    "deberta-large-mnli": 18,
    "deberta-xlarge-mnli": 40,
}
BATCH = 64
LONGEST = 512


class BertScore(ModelMetric):
    """A pair's row: 1, and F."""

    name = "bertscore"
    titles = scores = ("BERTScore",)

    def rows(self, systems: Sequence[Pairs]) -> list[np.ndarray]:
        tokenizer, model = self.loaded("AutoTokenizer", "AutoModel")
        layer = LAYERS.get(short(self.model), int(model.config.num_hidden_layers))
        self.version += f", layer {layer}"
        kept = Kept(f"bertscore-{short(self.model)}")
        wanted: list[Key] = [
            (self.version, caption, reference)
            for one in systems
            for caption, references in zip(one.captions, one.references, strict=True)
            for reference in references
        ]
        known = kept.known(wanted)
        missing = [key for key in dict.fromkeys(wanted) if key not in known]
        states = hidden_states(tokenizer, model, layer, dict.fromkeys(text for key in missing for text in key[1:]))
        found = {key: [similarity(states[key[1]], states[key[2]])] for key in missing}
        kept.keep(found)
        known |= found
        return [
            np.array(
                [
                    [1, max(known[self.version, caption, reference][0] for reference in references)]
                    for caption, references in zip(one.captions, one.references, strict=True)
                ]
            )
            for one in systems
        ]


def hidden_states(tokenizer: Any, model: Any, layer: int, texts: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Text → unit vectors [tokens, width] of a layer, and which tokens count (all but the special ones) [tokens]."""
    import torch

    ordered = sorted(texts, key=len)
    found = {}
    model.eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    for start in range(0, len(ordered), BATCH):
        part = ordered[start : start + BATCH]
        inputs = tokenizer(
            [text.strip() for text in part],
            padding=True,
            truncation=True,
            max_length=min(LONGEST, tokenizer.model_max_length),
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        special = inputs.pop("special_tokens_mask").bool().numpy()
        with torch.inference_mode():
            states = model(**inputs.to(device), output_hidden_states=True).hidden_states[layer]
            states = torch.nn.functional.normalize(states.float(), dim=-1).cpu().numpy()
        mask = inputs["attention_mask"].bool().cpu().numpy()
        for i, text in enumerate(part):
            found[text] = states[i][mask[i]], ~special[i][mask[i]]
    return found


def similarity(caption: tuple[np.ndarray, np.ndarray], reference: tuple[np.ndarray, np.ndarray]) -> float:
    """F of the greedy matching; 0 if a text has no tokens."""
    (ours, count), (theirs, weight) = caption, reference
    if not count.any() or not weight.any():
        return 0.0
    cosines = ours @ theirs.T
    precision, recall = cosines.max(1)[count].mean(), cosines.max(0)[weight].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


METRIC = BertScore()
