"""One rank of the tensor-parallel tests: language models trained by DeepSpeed at T × D through a list of actions."""

import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

os.environ.setdefault("DS_ACCELERATOR", "cpu")

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# 97 and 98 pieces: no multiple of 2, or none of 4, so that vocabularies are padded.
ARCHITECTURES = {
    "llama": {"model_type": "llama", "vocab_size": 97, **SMALL},
    "mistral": {"model_type": "mistral", "vocab_size": 98, "tie_word_embeddings": True, **SMALL},
    "qwen2": {"model_type": "qwen2", "vocab_size": 97, "tie_word_embeddings": True, **SMALL},
    "qwen3": {"model_type": "qwen3", "vocab_size": 97, "head_dim": 8, **SMALL},
}


class Captioner(torch.nn.Module):
    """A language model with another part before it that is not split, as in OneDiff."""

    def __init__(self, language) -> None:
        super().__init__()
        from onediff.parallel.loss import with_loss

        self.language = language
        with_loss(language.get_output_embeddings())
        self.projector = torch.nn.Linear(language.config.hidden_size, language.config.hidden_size)

    def forward(self, ids: torch.Tensor, chunk: int | None) -> torch.Tensor:
        """[batch, tokens] → the loss of each target."""
        from onediff.parallel.loss import target_loss

        embeds = self.language.get_input_embeddings()(ids[:, :-1])
        embeds = embeds + self.projector(embeds)
        hidden = self.language.get_decoder()(inputs_embeds=embeds, use_cache=False).last_hidden_state
        return target_loss(self.language.get_output_embeddings(), hidden.flatten(0, 1), ids[:, 1:].flatten(), chunk)


def engine_for(model: str, stage: int, topology, trap: bool, lora: dict | None = None, checkpointing: str = "none"):
    """The named model under DeepSpeed; random weights are the same at every topology."""
    import deepspeed
    from transformers import AutoConfig, AutoModelForCausalLM

    from onediff.config.model import LoraConfig
    from onediff.model.lora import add_adapters, is_adapter
    from onediff.parallel.placement import Placement
    from onediff.training.activations import checkpoint_layers

    config = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 8 // topology.dp_size,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 100},
        "steps_per_print": 10**9,
    }
    folder = None if model in ARCHITECTURES else model
    architecture = (
        AutoConfig.for_model(**ARCHITECTURES[model]) if folder is None else AutoConfig.from_pretrained(folder)
    )
    torch.manual_seed(0)
    placement = Placement(topology, config if stage == 3 else None)
    adapt = None if lora is None else partial(add_adapters, config=LoraConfig(**lora))
    language = placement.build(AutoModelForCausalLM, architecture, folder, cut=True, adapt=adapt)
    torch.manual_seed(1)
    whole = Captioner(language)
    if trap:
        for parameter in whole.parameters():
            if hasattr(parameter, "tensor_model_parallel"):
                del parameter.tensor_model_parallel
    if lora is not None:
        for name, parameter in language.named_parameters():
            parameter.requires_grad_(is_adapter(name))
    checkpoint_layers(language, checkpointing)
    whole.train()
    optimizer = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=1e-4 if lora is None else 1e-2)
    engine = deepspeed.initialize(
        model=whole, optimizer=optimizer, config=config, mpu=topology.mpu, dist_init_required=False
    )[0]
    from onediff.zero.gradient_norm import keep_gradient_norm

    keep_gradient_norm(engine)
    return engine


def train(engine, first: int, last: int, topology, vocabulary: int, chunk: int | None) -> tuple[list, list]:
    """Takes steps `first` … `last - 1` on batches that depend only on the step; returns losses and gradient norms."""
    import torch.distributed as dist

    losses, norms = [], []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(0, vocabulary, (8, 12), generator=generator)
        loss = engine(ids[topology.dp_rank :: topology.dp_size], chunk).mean()
        engine.backward(loss)
        engine.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(float(mean) / topology.ranks.world)
        norms.append(float(engine.get_global_grad_norm()))
    return losses, norms


def main() -> None:
    """Runs the actions of argv[2] at T = argv[1] and writes the results of rank 0 to argv[3]."""
    from onediff.config.parallel import ParallelConfig
    from onediff.parallel.ranks import initialize_distributed, shutdown
    from onediff.parallel.topology import create_topology
    from onediff.parallel.weights import export_weights
    from onediff.training import checkpoint
    from onediff.zero.engine import ZeroEngine

    ranks = initialize_distributed()
    topology = create_topology(ParallelConfig(tensor=int(sys.argv[1])), ranks)
    results = []
    for action in json.loads(sys.argv[2]):
        here = replace(topology, sequence=topology.mpu is not None and action.get("sequence", False))
        engine = engine_for(
            action["model"],
            action["stage"],
            here,
            action.get("trap", False),
            action.get("lora"),
            action.get("checkpointing", "none"),
        )
        if "load" in action:
            checkpoint.load_checkpoint(ZeroEngine(engine), Path(action["load"]))
        if "export" in action:
            folder = Path(action["export"])
            if ranks.rank == 0:
                folder.mkdir(parents=True)
            export_weights(engine.module.language, folder, shard_bytes=action.get("shard_bytes", 10**9))
        vocabulary = engine.module.language.config.vocab_size
        first, last = action.get("from", 0), action.get("to", 0)
        losses, norms = train(engine, first, last, topology, vocabulary, action.get("chunk"))
        if "save" in action:
            writer = checkpoint.CheckpointWriter(Path(action["save"]), background=False)
            writer.save(ZeroEngine(engine), step=last, extra={"lora": action.get("lora")})
        if "then" in action:
            losses += train(engine, last, action["then"], topology, vocabulary, None)[0]
        results.append({"losses": losses, "norms": norms})
        engine.destroy()
    if ranks.rank == 0:
        Path(sys.argv[3]).write_text(json.dumps(results))
    shutdown()


if __name__ == "__main__":
    main()
