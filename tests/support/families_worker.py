"""One of two tensor ranks, which compares losses and gradients of language models with those of the model's own class."""

import os
import sys

import torch

os.environ.setdefault("DS_ACCELERATOR", "cpu")


def compare(kind: str, topology) -> None:
    """Asserts that a rank's loss is the model's own, and each gradient the rank's block of the model's own."""
    from causal_models import small_model
    from language_rows import rows_of, sequences
    from transformers import AutoModelForCausalLM

    from onediff.model.families import logits_of
    from onediff.model.language import target_losses
    from onediff.model.registered import implementation
    from onediff.parallel.block import block_of
    from onediff.parallel.loss import Logits, with_loss
    from onediff.parallel.materialize import InMemory, place

    embeds, ids = sequences()[0]
    # 65, so that the vocabulary is padded. One of the words is the padding's, which learns nothing.
    model = small_model(kind, vocab_size=65, pad_token_id=int(ids[0, 1]))
    words = model.get_input_embeddings()(ids)
    theirs = model(inputs_embeds=words + embeds, labels=ids).loss
    theirs.backward()
    attention = implementation(AutoModelForCausalLM, model.config)
    with torch.device("meta"):
        cut = AutoModelForCausalLM.from_config(model.config, attn_implementation=attention)
    cut = place(cut, InMemory(model.state_dict()), topology).train()
    with_loss(cut.get_output_embeddings(), Logits(*logits_of(cut.config)))
    _, batch = rows_of([[0]], ids.shape[1], packed=False)
    ours = target_losses(cut, cut.get_input_embeddings()(ids) + embeds, batch).mean()
    ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=0, msg=f"{kind}: {ours} instead of {theirs}")
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in cut.named_parameters():
        whole, block = gradients[name], block_of(parameter)
        there = max(0, min(block.size, whole.shape[block.dim] - block.start))
        expected = whole.narrow(block.dim, block.start, there)
        apart = (parameter.grad.narrow(block.dim, 0, there) - expected).abs().amax()
        assert apart < 1e-4 * whole.abs().amax() + 1e-7, f"{kind}: gradient of {name} is {apart} off"


def main() -> None:
    """Compares each model type of the arguments."""
    from onediff.config.parallel import ParallelConfig
    from onediff.parallel.ranks import initialize_distributed, shutdown
    from onediff.parallel.topology import create_topology

    topology = create_topology(ParallelConfig(tensor=2), initialize_distributed())
    for kind in sys.argv[1:]:
        compare(kind, topology)
    shutdown()


if __name__ == "__main__":
    main()
