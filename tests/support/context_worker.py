"""One context-parallel rank, which compares losses and gradients of language models with those of the whole model."""

import os
import sys

import torch

os.environ.setdefault("DS_ACCELERATOR", "cpu")


def compare(kind: str, topology) -> None:
    """Asserts that every rank has the losses of all targets, and that the context group's mean gradients are the model's."""
    from causal_models import small_model
    from language_rows import LENGTHS, rows_of, sequences
    from transformers import AutoModelForCausalLM

    from onediff.model.families import logits_of
    from onediff.model.language import target_losses
    from onediff.model.registered import implementation
    from onediff.parallel.block import block_of
    from onediff.parallel.loss import Logits, with_loss
    from onediff.parallel.materialize import InMemory, place

    model = small_model(kind, vocab_size=65)  # so that tensor groups pad the vocabulary
    rows = [(embeds.requires_grad_(), ids) for embeds, ids in sequences()]
    expected = sum(model(inputs_embeds=embeds, labels=ids).loss * (ids.numel() - 1) for embeds, ids in rows)
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients["embeds"] = torch.cat([embeds.grad[0] for embeds, _ in rows])
    with torch.device("meta"):
        attention = implementation(AutoModelForCausalLM, model.config)
        shared = AutoModelForCausalLM.from_config(model.config, attn_implementation=attention)
    shared = place(shared, InMemory(model.state_dict()), topology).eval()
    with_loss(shared.get_output_embeddings(), Logits(*logits_of(shared.config)))
    shared.context_group = topology.context_group
    for samples, tokens, packed in (([[0, 1]], sum(LENGTHS) + 1, True), ([[0], [1]], max(LENGTHS), False)):
        shared.zero_grad()
        embeds, batch = rows_of(samples, tokens, packed)
        losses = target_losses(shared, embeds.requires_grad_(), batch, chunk=3)
        assert losses.shape == batch.target_ids.shape
        torch.testing.assert_close(losses.sum(), expected, rtol=2e-5, atol=0)
        losses.sum().backward()
        parts = {name: (p.grad, block_of(p)) for name, p in shared.named_parameters()}
        for name, (gradient, block) in parts.items():
            if gradients[name] is not None:
                there = max(0, min(block.size, gradients[name].shape[block.dim] - block.start))
                whole = gradients[name].narrow(block.dim, block.start, there)
                assert_mean(gradient.narrow(block.dim, 0, there), whole, topology, f"{kind}: {name}")
        assert_mean(embeds.grad.flatten(0, 1)[: sum(LENGTHS)], gradients["embeds"], topology, f"{kind}: embeds")


def assert_mean(gradient: torch.Tensor, whole: torch.Tensor, topology, name: str) -> None:
    """Asserts that the mean over the context group is `whole`."""
    import torch.distributed as dist

    mean = gradient.clone()
    dist.all_reduce(mean, group=topology.context_group)
    apart = (mean / topology.cp_size - whole).abs().amax()
    assert apart < 1e-4 * whole.abs().amax() + 1e-7, f"gradient of {name} is {apart} off"


def main() -> None:
    """argv[1] is T; the others are model types. C is as large as possible."""
    from onediff.config.parallel import ParallelConfig
    from onediff.parallel.ranks import initialize_distributed, shutdown
    from onediff.parallel.topology import create_topology

    tensor, ranks = int(sys.argv[1]), initialize_distributed()
    topology = create_topology(ParallelConfig(tensor=tensor, context=ranks.world // tensor), ranks)
    for kind in sys.argv[2:]:
        compare(kind, topology)
    shutdown()


if __name__ == "__main__":
    main()
