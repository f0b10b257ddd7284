"""Captions per second of our generation and of Hugging Face `generate`, with the same weights, batches and run.

  python benchmarks/generate.py --json generate.json
  python benchmarks/generate.py --model my-model --data data/scenes/pairs/test --batch 16

Greedy, batch 16, prompts as in `onediff evaluate`. The vision part is the same on both sides and runs once per batch.
Without `--model`, it uses random weights in two sizes: the demo's, and 50 million parameters; a bias of the head towards
the end-of-text token makes rows end one after another, as captions do (`--mean-tokens`). The script fails if the tokens
differ. Rounds alternate, and the ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from machine import machine
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from onediff.model.decode import greedy, not_greedy

SHAPES: dict[str, dict[str, Any]] = {
    "demo": {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 384}
    | {"vocab_size": 384},
    "50M": {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 1536}
    | {"vocab_size": 8192},
}
PROMPT = {"demo": 60, "50M": 60}
"""Tokens of a prompt: 2 × 16 of images, 16 of deltas and the words, as in the demo."""
END = 1


def random_model(shape: str) -> Any:
    torch.manual_seed(0)
    sizes = SHAPES[shape]
    config = AutoConfig.for_model(
        "llama", num_key_value_heads=sizes["num_attention_heads"], initializer_range=0.06, **sizes
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def ending(model: Any, embeds: Tensor, new: int, mean: float) -> None:
    """Scales the head's row of the end-of-text token until rows end after `mean` tokens on average, if they can."""
    head, best = model.get_output_embeddings().weight, None
    row = head.data[END].clone()
    for scale in torch.linspace(0, 4, 9).tolist():
        head.data[END] = row * scale
        made = by_us(model, embeds, new)
        lengths = torch.where((made == END).any(1), (made == END).int().argmax(1) + 1, new).float()
        if best is None or abs(float(lengths.mean()) - mean) < best[0]:
            best = abs(float(lengths.mean()) - mean), scale
    assert best is not None
    head.data[END] = row * best[1]


@torch.no_grad()
def by_us(model: Any, embeds: Tensor, new: int, end: int = END) -> Tensor:
    seen = torch.ones(embeds.shape[:2], dtype=torch.bool)
    assert not_greedy(model, embeds.shape[1] + new, {}) is None
    return greedy(model, embeds, seen, max_new_tokens=new, eos_token_id=end, pad_token_id=0)


@torch.no_grad()
def by_hugging_face(model: Any, embeds: Tensor, new: int, end: int = END) -> Tensor:
    model.generation_config = GenerationConfig()
    return model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=0,
    )


def saved_batches(args: argparse.Namespace) -> tuple[Any, list[Tensor], int]:
    """The language model of a saved model, the embedded prompts of a held-out split, and the end-of-text token."""
    from onediff.data.heldout import HeldOut
    from onediff.data.images import open_upright
    from onediff.data.rows import collate
    from onediff.evaluation.captioner import Captioner

    captioner = Captioner(args.model, "cpu")
    heldout = HeldOut.open(args.data, args.batch * args.batches)
    rows = []
    for pair in heldout.references:
        images = heldout.sample(pair).images
        both = [open_upright(images[role], captioner.processor.config.max_pixels) for role in ("before", "after")]
        rows.append(captioner.processor.prompt(both, None))
    with torch.no_grad():
        batches = [
            captioner.model.embed(collate(rows[at : at + args.batch], pad_left=True))
            for at in range(0, len(rows), args.batch)
        ]
    return captioner.model.language, batches, captioner.tokenizer.eos_token_id


def measured(name: str, model: Any, batches: list[Tensor], end: int, args: argparse.Namespace) -> dict[str, Any]:
    rows = sum(len(batch) for batch in batches)
    seconds: dict[str, list[float]] = {"onediff": [], "transformers": []}
    tokens = 0
    for turn in range(args.rounds + 1):
        for side, decode in (("onediff", by_us), ("transformers", by_hugging_face)):
            started = time.perf_counter()
            made = [decode(model, batch, args.new_tokens, end) for batch in batches]
            taken = time.perf_counter() - started
            if turn:  # the first round warms up
                seconds[side].append(taken)
            elif side == "onediff":
                ours = made
                tokens = sum(int((one != 0).sum()) for one in made)
            else:
                assert all(one.equal(other) for one, other in zip(ours, made, strict=True)), "other tokens"
    ratios = [hf / us for us, hf in zip(seconds["onediff"], seconds["transformers"], strict=True)]
    rates = {side: rows / statistics.median(taken) for side, taken in seconds.items()}
    print(
        f"{name:<8} batch {len(batches[0])}, {tokens / rows:.1f} tokens per caption: onediff {rates['onediff']:.1f} "
        f"captions/s, transformers {rates['transformers']:.1f}: {statistics.median(ratios):.2f} times as fast "
        f"({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds)"
    )
    return {
        "model": name,
        "parameters_of_the_language_model": sum(parameter.numel() for parameter in model.parameters()),
        "prompt_tokens": batches[0].shape[1],
        "rows": rows,
        "tokens_a_caption": tokens / rows,
        "captions_per_second": rates,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a saved model instead of random weights; needs --data")
    parser.add_argument("--data", type=Path, help="a split of a data set: a folder of shards")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--mean-tokens", type=float, default=18)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = []
    if args.model is not None:
        results.append(measured(str(args.model), *saved_batches(args), args))
    else:
        for name in SHAPES:
            model = random_model(name)
            width = SHAPES[name]["hidden_size"]
            batches = [torch.randn(args.batch, PROMPT[name], width) for _ in range(args.batches)]
            ending(model, batches[0], args.new_tokens, args.mean_tokens)
            results.append(measured(name, model, batches, END, args))
    if args.json:
        about = machine("torch", "transformers") | {"threads": torch.get_num_threads()}
        args.json.write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
