"""OneDiff: tower, delta module and projector in front of a causal language model (arXiv 2407.05645, figure 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from onediff.config.model import LoraConfig, ModelConfig
from onediff.data.batch import Batch
from onediff.model.cuda_graph import CudaGraphs, not_recordable
from onediff.model.decode import greedy, not_greedy
from onediff.model.delta import build_delta
from onediff.model.language import build_language, target_losses
from onediff.model.lean import transformers
from onediff.model.norms import Kernels, fuse_norms
from onediff.model.projector import Projector
from onediff.model.vision import VisionTower
from onediff.parallel.placement import ALONE, Placement

PARTS = ("vision", "delta", "projector", "language")


class OneDiffModel(nn.Module):
    """The whole model. Its four parts are named as in the configuration: `vision`, `delta`, `projector`, `language`."""

    def __init__(
        self,
        config: ModelConfig,
        attention: str | None = None,
        placement: Placement = ALONE,
        lora: LoraConfig | None = None,
        norms: Kernels = "auto",
    ) -> None:
        """`attention` is a name that transformers knows (`eager`, `sdpa`), instead of our own function."""
        super().__init__()
        self.vision = VisionTower(config.vision, attention, placement.of("vision"))
        self.language = build_language(config.language, attention, placement.of("language"), lora)
        language_width = self.language.config.hidden_size
        self.delta = build_delta(config.delta, self.vision.width, len(config.vision.levels), self.vision.tokens)
        self.projector = Projector(self.vision.width, config.delta.width, language_width)
        if config.delta.bert is not None:
            from onediff.model.bert import initialise_from_bert

            initialise_from_bert(self.delta, config.delta.bert)
        self.norms = fuse_norms(self, norms)
        """the implementation of the norms, for the log"""
        self.cuda_graphs = CudaGraphs()
        """recorded steps of generation"""

    def forward(self, batch: Batch, objective: Callable[[OneDiffModel, Batch], Tensor] | None = None) -> Tensor:
        """Returns `objective(self, batch)`. An objective must run in here, because ZeRO-3 gathers the parts only here.

        Without an objective, returns the unreduced loss of each target, `[targets]` fp32.
        """
        if objective is not None:
            return objective(self, batch)
        return target_losses(self.language, self.embed(batch), batch)

    def embed(self, batch: Batch) -> Tensor:
        """`[rows, tokens, width]`: word embeddings, image tokens and delta tokens, each in its place.

        A batch without images or pairs runs tower and delta module on a blank image with zero weight, because under
        ZeRO-3 every rank must gather the same parameters in the same order.
        """
        words = self.language.get_input_embeddings()(batch.token_ids)
        output, levels = self._seen(batch)
        chosen = output if batch.planes is None else batch.planes.of_images(output)
        image_tokens, delta_tokens = self.projector(chosen, self._deltas(levels, batch))
        flat = words.flatten(0, 1)
        for places, tokens in ((batch.image_places, image_tokens), (batch.delta_places, delta_tokens)):
            tokens = tokens.flatten(0, -2).to(flat.dtype)
            flat = flat.index_copy(0, places, tokens) if len(places) else flat + 0 * tokens.sum()
        return flat.view_as(words)

    def _seen(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The tower's output and levels, as `VisionTower.forward` returns them, from precomputed features if available."""
        if batch.features is not None:
            return self.vision.of_layers(batch.features)
        images = batch.images if len(batch.images) else self.vision.blank(batch.images.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and _trains(self.vision)):
            return self.vision(images, batch.planes)

    def _deltas(self, levels: list[Tensor], batch: Batch) -> Tensor:
        """`[pairs, tokens, width]`; in a batch without pairs, the first view compared with itself."""
        if not batch.pairs:
            return self.delta([level[:1].expand(2, -1, -1) for level in levels], 1)
        if batch.planes is None:
            return self.delta(levels, batch.pairs)
        return self.delta(batch.planes.of_pairs(levels), batch.pairs, batch.planes)

    @torch.no_grad()
    def generate(self, batch: Batch, *, max_new_tokens: int, **options: Any) -> Tensor:
        """`[rows, new tokens]` token ids that continue left-padded prompts; `segment_ids` 0 marks the padding.

        The usual families use our own greedy search (`decode`). Other families, and `options` that it does not support
        (`num_beams`, `do_sample`, …), use Hugging Face `generate`. Both ignore a pretrained model's
        `generation_config.json`. `synced` tells whether any rank continues, for jobs whose ranks must step together. With
        `cuda_graph`, a GPU that holds the whole model replays recorded greedy steps; if that is impossible, the log says
        why.
        """
        assert batch.segment_ids is not None
        in_graphs = options.pop("cuda_graph", False)
        embeds, seen = self.embed(batch), batch.segment_ids > 0
        elsewhere = not_greedy(self.language, seen.shape[1] + max_new_tokens, options)
        record = self.cuda_graphs.unless(elsewhere or not_recordable(self.language)) if in_graphs else None
        if elsewhere is None:
            return greedy(self.language, embeds, seen, max_new_tokens=max_new_tokens, record=record, **options)
        synced = options.pop("synced", None) is not None
        self.language.generation_config = transformers.GenerationConfig()
        return self.language.generate(
            inputs_embeds=embeds,
            attention_mask=seen.long(),
            max_new_tokens=max_new_tokens,
            synced_gpus=synced,
            **options,
        )


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
