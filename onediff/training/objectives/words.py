"""Image and delta tokens in the words of the language model, before it reads them.

A pretrained language model learns nothing from tokens that it cannot tell apart, and each of its passes is expensive. This
objective needs none: of the words of a caption, each must be close to one of the sample's tokens, in the language model's
own embeddings. It looks at no order, so a phase with the captions' objective follows.

A word competes with the other words of its micro-batch. So the loss depends on which rows share a micro-batch, and
therefore, unlike that of captions, on the number of ranks that share the rows. Ranks that share the model (tensor and
context parallelism) and the ZeRO stage change nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onediff.config.training import PhaseConfig, TrainingConfig
from onediff.data.batch import Batch
from onediff.errors import UserError
from onediff.model.onediff import OneDiffModel


class WordsObjective:
    """See `Objective`. A pair's words are looked for in its delta tokens, a single image's in its image tokens."""

    def __init__(self, phase: PhaseConfig, training: TrainingConfig) -> None:
        if "language" in phase.train:
            raise UserError("objective: words does not run the language model; remove `language` from `train`")

    def __call__(self, model: OneDiffModel, batch: Batch) -> Tensor:
        """`[targets]` fp32: the cross-entropy of each target among the batch's words.

        The score of a word for a sample is the log-sum-exp of its products with the sample's tokens. Costs
        2 · places · words · width FLOPs forward, beside the parts in front of the language model.
        """
        embeds = model.embed(batch).flatten(0, 1)
        samples = samples_of(batch)
        has_delta = torch.zeros(int(samples.max()) + 1, dtype=torch.bool, device=samples.device)
        has_delta[samples[batch.delta_places]] = True
        of_singles = batch.image_places[~has_delta[samples[batch.image_places]]]
        places = torch.cat([batch.delta_places, of_singles])
        words, word_of_target = batch.target_ids.unique(return_inverse=True)
        products = (embeds[places] @ model.language.get_input_embeddings()(words).T).float()
        scores = log_sum_exp(products, samples[places], len(has_delta))
        return -scores.log_softmax(-1)[samples[batch.target_places], word_of_target]


def samples_of(batch: Batch) -> Tensor:
    """`[rows · tokens]` int64: the number of the sample that each token belongs to."""
    rows, tokens = batch.token_ids.shape
    row = torch.arange(rows, device=batch.token_ids.device)[:, None].expand(-1, tokens)
    if batch.segment_ids is None:
        return row.flatten()
    return (row * (int(batch.segment_ids.max()) + 1) + batch.segment_ids).flatten()


def log_sum_exp(values: Tensor, groups: Tensor, number: int) -> Tensor:
    """`[number, columns]`: the log-sum-exp over each group of rows of `values`, `[rows, columns]`; -1e4 for an empty one."""
    index = groups[:, None].expand_as(values)
    highest = torch.full((number, values.shape[1]), -1e4, device=values.device)
    highest = highest.scatter_reduce(0, index, values.detach(), "amax")
    sums = torch.zeros_like(highest).index_add(0, groups, (values - highest[groups]).exp())
    return highest + sums.clamp_min(1e-30).log()
