"""Public models as their repositories on the hub are laid out, file by file, narrow and random inside.

Like the public ones, they have the same files in the same formats, the same tensor names, and the same fields of
`config.json` and `tokenizer_config.json` that determine how they are read. Sizes and values differ.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TEXTS = ["a red cube was added", "the small blue ball moved to the left", "nothing has changed"] * 20
VOCABULARY = 320
NARROW = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LANGUAGE = {**NARROW, "num_key_value_heads": 2, "vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
TEXT_HALF = {**NARROW, "vocab_size": VOCABULARY, "projection_dim": 16}
SMALL_FILES = ("tokenizer.json", "tokenizer_config.json")
BPE_FILES = (*SMALL_FILES, "vocab.json", "merges.txt")


@dataclass(frozen=True)
class Repository:
    """One public model."""

    name: str
    kind: str
    """`language`, `vision` or `bert`"""
    config: dict[str, Any]
    """of its `config.json`"""
    weights: tuple[str, ...]
    """its weight files; with more than one, an index lies beside them"""
    stored: str
    """a pattern that every name of a tensor in them matches"""
    files: tuple[str, ...] = ()
    """its other files that are needed"""
    left: tuple[str, ...] = ()
    """files that are not"""
    tokenizer: dict[str, Any] = field(default_factory=dict)
    """of its `tokenizer_config.json`"""
    dtype: torch.dtype = torch.float32


_LLAMA = (
    r"model\.(embed_tokens|norm|layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj|\w+_layernorm))\.weight"
)
_VIT = (
    r"(embeddings\.(class_embedding|patch_embedding\.\w+|position_embedding\.weight|position_ids)|pre_layrnorm\.\w+|"
    r"encoder\.layers\.\d+\.(self_attn\.\w+_proj|mlp\.fc[12]|layer_norm[12])\.(weight|bias)|post_layernorm\.\w+|head\..+)"
)

VICUNA = Repository(
    "lmsys/vicuna-7b-v1.5",
    "language",
    {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **LANGUAGE,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
    },
    ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"),
    rf"{_LLAMA}|lm_head\.weight|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    ("generation_config.json", "special_tokens_map.json", "tokenizer.model", "tokenizer_config.json"),
    tokenizer={"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "unk_token": "<unk>"},
    dtype=torch.float16,
)
CLIP = Repository(
    "openai/clip-vit-large-patch14-336",
    "vision",
    {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": 16,
        "text_config": {"model_type": "clip_text_model", **TEXT_HALF},
        "vision_config": {"model_type": "clip_vision_model", **NARROW, "image_size": 56, "patch_size": 14},
    },
    ("pytorch_model.bin",),
    rf"vision_model\.{_VIT}|text_model\..+|logit_scale|(visual|text)_projection\.weight",
    ("merges.txt", "preprocessor_config.json", "special_tokens_map.json", *SMALL_FILES, "vocab.json"),
    ("README.md", "tf_model.h5"),
)
BERT = Repository(
    "bert-base-uncased",
    "bert",
    {"model_type": "bert", "architectures": ["BertForMaskedLM"], **NARROW, "vocab_size": VOCABULARY},
    ("model.safetensors",),
    r"(bert\.(embeddings|encoder\.layer\.\d+|pooler)|cls)\..+",
    (*SMALL_FILES, "vocab.txt"),
    ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "model.onnx"),
)
PAPER = (VICUNA, CLIP, BERT)

FAMILIES = (
    *PAPER,
    Repository(
        "Qwen/Qwen2.5-1.5B-Instruct",
        "language",
        {
            "model_type": "qwen2",
            **LANGUAGE,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "sliding_window": 64,
        },
        ("model.safetensors",),
        rf"{_LLAMA}|model\.layers\.\d+\.self_attn\.[qkv]_proj\.bias",
        ("generation_config.json", *BPE_FILES),
        tokenizer={"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False},
        dtype=torch.bfloat16,
    ),
    Repository(
        "Qwen/Qwen3-1.7B",
        "language",
        {"model_type": "qwen3", **LANGUAGE, "head_dim": 16, "tie_word_embeddings": True},
        ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        rf"{_LLAMA}|model\.layers\.\d+\.self_attn\.[qk]_norm\.weight|lm_head\.weight",
        ("generation_config.json", *BPE_FILES),
        tokenizer={"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False},
        dtype=torch.bfloat16,
    ),
    Repository(
        "meta-llama/Llama-3.1-8B-Instruct",
        "language",
        {
            "model_type": "llama",
            **LANGUAGE,
            "eos_token_id": [2, 3],
            "tie_word_embeddings": False,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
        tuple(f"model-0000{number}-of-00004.safetensors" for number in range(1, 5)),
        rf"{_LLAMA}|lm_head\.weight",
        ("generation_config.json", "special_tokens_map.json", *SMALL_FILES),
        ("original/consolidated.00.pth", "original/params.json", "original/tokenizer.model", "LICENSE"),
        tokenizer={"tokenizer_class": "PreTrainedTokenizerFast"},
        dtype=torch.bfloat16,
    ),
    Repository(
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        "language",
        {"model_type": "llama", **LANGUAGE, "num_key_value_heads": 4, "tie_word_embeddings": True},
        ("model.safetensors",),
        _LLAMA,
        ("generation_config.json", "special_tokens_map.json", *BPE_FILES),
        ("onnx/model.onnx", "runs/events"),
        tokenizer={"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False},
        dtype=torch.bfloat16,
    ),
    Repository(
        "HuggingFaceTB/SmolLM3-3B",
        "language",
        {"model_type": "smollm3", **LANGUAGE, "no_rope_layers": [1, 0], "tie_word_embeddings": True, "pad_token_id": 0},
        ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        _LLAMA,
        ("chat_template.jinja", "generation_config.json", "special_tokens_map.json", *SMALL_FILES),
        tokenizer={"tokenizer_class": "PreTrainedTokenizerFast"},
        dtype=torch.bfloat16,
    ),
    Repository(
        "mistralai/Mistral-7B-Instruct-v0.3",
        "language",
        {"model_type": "mistral", **LANGUAGE, "sliding_window": None, "tie_word_embeddings": False},
        tuple(f"model-0000{number}-of-00003.safetensors" for number in range(1, 4)),
        rf"{_LLAMA}|lm_head\.weight",
        ("generation_config.json", "params.json", "special_tokens_map.json", *SMALL_FILES, "tokenizer.model"),
        ("consolidated.safetensors", "tokenizer.model.v3"),
        tokenizer={"tokenizer_class": "LlamaTokenizer", "legacy": False, "unk_token": "<unk>"},
        dtype=torch.bfloat16,
    ),
    Repository(
        "google/siglip2-base-patch16-224",
        "vision",
        {
            "model_type": "siglip",
            "architectures": ["SiglipModel"],
            "text_config": {"model_type": "siglip_text_model", **TEXT_HALF, "projection_size": 32},
            "vision_config": {"model_type": "siglip_vision_model", **NARROW, "image_size": 64, "patch_size": 16},
        },
        ("model.safetensors",),
        rf"vision_model\.{_VIT}|text_model\..+|logit_(scale|bias)",
        ("preprocessor_config.json", "special_tokens_map.json", *SMALL_FILES),
    ),
    Repository(
        "google/siglip2-base-patch16-naflex",
        "vision",
        {
            "model_type": "siglip2",
            "architectures": ["Siglip2Model"],
            "text_config": {"model_type": "siglip2_text_model", **TEXT_HALF, "projection_size": 32},
            "vision_config": {"model_type": "siglip2_vision_model", **NARROW, "num_patches": 16, "patch_size": 16},
        },
        ("model.safetensors",),
        rf"vision_model\.{_VIT}|text_model\..+|logit_(scale|bias)",
        ("preprocessor_config.json", "special_tokens_map.json", *SMALL_FILES),
    ),
    Repository(
        "facebook/dinov2-base",
        "vision",
        {"model_type": "dinov2", **NARROW, "image_size": 56, "patch_size": 14, "mlp_ratio": 2},
        ("model.safetensors",),
        r"embeddings\..+|encoder\.layer\.\d+\.(attention\.(attention\.(query|key|value)|output\.dense)|mlp\.fc[12]|"
        r"norm[12]|layer_scale[12])\.\w+|layernorm\.\w+",
        ("preprocessor_config.json",),
        ("pytorch_model.bin",),
    ),
    Repository(
        "facebook/dinov3-vitb16-pretrain-lvd1689m",
        "vision",
        {"model_type": "dinov3_vit", **NARROW, "image_size": 64, "patch_size": 16, "num_register_tokens": 4},
        ("model.safetensors",),
        r"embeddings\..+|layer\.\d+\.(attention\.[qkvo]_proj|mlp\.(up|down)_proj|norm[12]|layer_scale[12])\.\w+|norm\.\w+",
        ("preprocessor_config.json",),
        ("LICENSE.md",),
    ),
)


def publish(repository: Repository, root: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    """Writes the repository below `root`; returns its tensors under their public names."""
    folder = root / repository.name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(repository.config))
    for name in (*repository.files, *repository.left):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}" if name.endswith(".json") else "not read")
    weights = stored_weights(repository, seed)
    strange = [name for name in weights if not re.fullmatch(repository.stored, name)]
    assert not strange, f"{repository.name}: the public files have no {strange[0]}"
    _write_weights(folder, repository.weights, weights)
    if repository.tokenizer:
        _write_tokenizer(folder, repository)
    return weights


def stored_weights(repository: Repository, seed: int) -> dict[str, torch.Tensor]:
    """Random tensors under the names that the public files have."""
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    architecture = transformers.AutoConfig.for_model(**repository.config)
    named = repository.config.get("architectures")
    auto = transformers.AutoModelForCausalLM if repository.kind == "language" else transformers.AutoModel
    torch.manual_seed(seed)
    model = getattr(transformers, named[0])(architecture) if named else auto.from_config(architecture)
    state = model.state_dict()
    if repository.config.get("tie_word_embeddings") and r"lm_head" not in repository.stored:
        state.pop("lm_head.weight", None)
    # Larger numbers than those that training begins with, so that no two tensors are equal.
    state = {
        name: tensor + 0.1 * torch.randn(tensor.shape) for name, tensor in state.items() if tensor.is_floating_point()
    }
    if "lm_head.weight" in state and repository.config.get("tie_word_embeddings"):
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    state = {name: tensor.to(repository.dtype) for name, tensor in revert_weight_conversion(model, state).items()}
    if repository.kind == "bert":
        state = {re.sub("LayerNorm.weight$", "LayerNorm.gamma", name): tensor for name, tensor in state.items()}
        state = {re.sub("LayerNorm.bias$", "LayerNorm.beta", name): tensor for name, tensor in state.items()}
    if repository is VICUNA:
        for number in range(architecture.num_hidden_layers):
            state[f"model.layers.{number}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    if repository is CLIP:
        state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
        state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return state


def _write_weights(folder: Path, files: tuple[str, ...], weights: dict[str, torch.Tensor]) -> None:
    names, file_of = sorted(weights), {}
    for number, file in enumerate(files):
        part = {name: weights[name].contiguous() for name in names[number :: len(files)]}
        if file.endswith(".bin"):
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, {"format": "pt"})
        file_of |= dict.fromkeys(part, file)
    if len(files) > 1:
        stem, _, ending = files[0].rpartition("-00001-of-")[0], "", files[0].rpartition(".")[2]
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))


def _write_tokenizer(folder: Path, repository: Repository) -> None:
    """A small vocabulary of the same kind, in the files that the public repository has."""
    from onediff.model.tokenizer import learn_tokenizer

    about = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **repository.tokenizer}
    if "tokenizer.model" in repository.files:
        _learn_sentencepiece(folder / "tokenizer.model")
        about["pad_token"] = None
    if "tokenizer.json" in repository.files:
        learned = folder / "learned"
        learn_tokenizer(TEXTS, VOCABULARY, learned)
        (folder / "tokenizer.json").write_bytes((learned / "tokenizer.json").read_bytes())
        model = json.loads((folder / "tokenizer.json").read_text())["model"]
        if "vocab.json" in repository.files:
            (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
            (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
        for file in learned.iterdir():
            file.unlink()
        learned.rmdir()
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def _learn_sentencepiece(file: Path) -> None:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(file.with_suffix("")),
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    file.with_suffix(".vocab").unlink()
