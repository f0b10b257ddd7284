"""The paper's model on the meta device: sizes, tokens and shapes, without weights or network access."""

import re
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, BertModel

from onediff.config.compose import configs_folder, load_run
from onediff.data.batch import Batch
from onediff.model.build import architecture_only
from onediff.model.onediff import OneDiffModel
from onediff.parallel.pretrained import find
from onediff.plan.gpus import gpu_named
from onediff.plan.phase import plan_phase, setup_of
from onediff.plan.rows import TEXT
from onediff.plan.suggest import suggest
from onediff.training.optimizer import freeze, trainable

IMAGE_TOKENS, DELTA_TOKENS, WORDS = 576, 64, 30


@pytest.fixture(scope="module")
def config():
    return load_run(configs_folder() / "onediff_7b.yaml")


@pytest.fixture(scope="module")
def model(config):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        with torch.device("meta"):
            return OneDiffModel(architecture_only(config.model)).to(torch.bfloat16)


def test_parameters_by_part(model):
    counts = {part: total for part, (total, _) in trainable(model).items()}
    assert counts["vision"] == 303_507_456  # CLIP ViT-L/14 at 336 pixels
    assert counts["language"] == 6_738_415_616  # Llama-2-7B, which Vicuna-7B v1.5 is
    assert counts["projector"] == 4096 * (1024 + 1) + 4096 * (768 + 1) + 2 * 4096 * (4096 + 1)
    width, vision, inner = 768, 1024, 3072
    self_attention = 4 * width * (width + 1) + 2 * width
    cross_attention = 2 * width * (width + 1) + 2 * width * (vision + 1) + 2 * width + 2 * 2 * width
    feed_forward = inner * (width + 1) + width * (inner + 1) + 2 * width
    tokens = 2 * DELTA_TOKENS * width + 3 * 2 * vision
    assert counts["delta"] == 6 * (self_attention + cross_attention + feed_forward) + tokens == 59_192_832


def test_what_each_phase_trains(model, config):
    assert list(config.phases) == ["one", "two"]
    freeze(model, config.phases["one"])
    trained = {part for part, (_, count) in trainable(model).items() if count}
    assert trained == {"delta", "projector"}
    freeze(model, config.phases["two"])
    assert all(total == count for total, count in trainable(model).values())


def test_phases_follow_the_paper_with_llavas_batch_sizes_and_learning_rates(config):
    one, two = config.phases["one"], config.phases["two"]
    assert (one.global_batch, one.lr, one.epochs, one.couple) == (256, 1e-3, 1, True)
    assert (two.global_batch, two.lr, two.epochs, two.couple) == (128, 2e-5, 1, False)
    assert one.pack is None and two.pack is None  # a row is a sample, so that the batch is one of samples
    assert sum(two.mix.values()) == 1000
    assert two.mix["llava-665k"] == 665
    assert config.training.precision == "bf16"


def planned(config, gpus: int):
    return [plan_phase(config, name, setup_of(config, name, gpus, 8), gpu_named("h100-80g")) for name in config.phases]


@pytest.mark.parametrize("nodes", [1, 2, 4, 8, 16])
def test_it_fits_on_one_to_sixteen_nodes_as_configured(config, nodes):
    assert all(plan.fits for plan in planned(config, 8 * nodes))


def test_it_is_nearly_as_fast_as_the_best_settings(config):
    best = suggest(config, gpu_named("h100-80g"), 64, 8, TEXT)
    seconds, least = (
        sum(plan.rows.steps * plan.duration.expected for plan in found) for found in (planned(config, 64), best)
    )
    assert seconds < 1.1 * least


def pair_batch() -> Batch:
    """The shapes of one pair with an instruction and an answer."""
    length = 2 * IMAGE_TOKENS + DELTA_TOKENS + WORDS
    numbers = torch.arange(length)
    return Batch(
        token_ids=torch.zeros(1, length, dtype=torch.int64),
        position_ids=numbers[None],
        segment_ids=None,
        images=torch.zeros(2, 3, 336, 336, dtype=torch.uint8),
        image_places=numbers[: 2 * IMAGE_TOKENS],
        pairs=1,
        delta_places=numbers[2 * IMAGE_TOKENS : 2 * IMAGE_TOKENS + DELTA_TOKENS],
        target_places=numbers[-10:-1],
        target_ids=torch.zeros(9, dtype=torch.int64),
        target_sources=torch.zeros(9, dtype=torch.int64),
    ).to(torch.device("meta"))


@torch.no_grad()
def test_shapes_of_a_pair(model, config):
    assert model.vision.tokens == IMAGE_TOKENS
    made = pair_batch()
    output, levels = model.vision(made.images)
    assert output.shape == (2, IMAGE_TOKENS, 1024)
    assert model.vision.levels == (8, 16, 24)
    assert model.vision.output_level == 23
    assert [level.shape for level in levels] == [(2, IMAGE_TOKENS, 1024)] * 3
    deltas = model.delta(levels, made.pairs)
    assert deltas.shape == (1, DELTA_TOKENS, 768)
    assert model.delta.level_of_layer == [0, 0, 1, 1, 2, 2]
    embeds = model.embed(made)
    assert embeds.shape == (1, 2 * 576 + 64 + WORDS, 4096)
    assert embeds.dtype == torch.bfloat16
    assert embeds.shape[1] <= config.data.max_tokens
    assert model(made).shape == (9,)


def test_every_weight_has_its_origin(config):
    """Writing out the architecture does not turn pretrained parts into random ones."""
    assert config.model.vision.name == "openai/clip-vit-large-patch14-336"
    assert config.model.language.name == "lmsys/vicuna-7b-v1.5"
    assert config.model.delta.bert == "bert-base-uncased"
    bare = architecture_only(config.model)
    assert (bare.vision.name, bare.language.name, bare.delta.bert) == (None, None, None)
    assert bare.language.tokenizer == "lmsys/vicuna-7b-v1.5"


def vicuna_files() -> dict[str, tuple[int, ...]]:
    """Names and shapes in lmsys/vicuna-7b-v1.5's pytorch_model.bin files."""
    width, inner, words = 4096, 11008, 32000
    found = {
        "model.embed_tokens.weight": (words, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (words, width),
    }
    for layer in (f"model.layers.{number}" for number in range(32)):
        found |= {f"{layer}.self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        found |= {f"{layer}.mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        found |= {f"{layer}.mlp.down_proj.weight": (width, inner), f"{layer}.self_attn.rotary_emb.inv_freq": (64,)}
        found |= {f"{layer}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    return found


def pair_of(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    """A layer's weight and bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def clip_files() -> dict[str, tuple[int, ...]]:
    """Names and shapes in openai/clip-vit-large-patch14-336's pytorch_model.bin, which contains both towers."""
    found: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "text_projection.weight": (768, 768),
        "visual_projection.weight": (768, 1024),
        "text_model.embeddings.token_embedding.weight": (49408, 768),
        "vision_model.embeddings.class_embedding": (1024,),
        "vision_model.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        **pair_of("text_model.final_layer_norm", 768),
        **pair_of("vision_model.pre_layrnorm", 1024),
        **pair_of("vision_model.post_layernorm", 1024),
    }
    for half, width, depth, places in (("text_model", 768, 12, 77), ("vision_model", 1024, 24, 577)):
        found[f"{half}.embeddings.position_embedding.weight"] = (places, width)
        found[f"{half}.embeddings.position_ids"] = (1, places)
        for layer in (f"{half}.encoder.layers.{number}" for number in range(depth)):
            for name in ("q", "k", "v", "out"):
                found |= pair_of(f"{layer}.self_attn.{name}_proj", width, width)
            found |= pair_of(f"{layer}.mlp.fc1", 4 * width, width) | pair_of(f"{layer}.mlp.fc2", width, 4 * width)
            found |= pair_of(f"{layer}.layer_norm1", width) | pair_of(f"{layer}.layer_norm2", width)
    return found


def bert_files() -> dict[str, tuple[int, ...]]:
    """Names and shapes in bert-base-uncased's model.safetensors: LayerNorm's are called gamma and beta."""
    width, inner, words = 768, 3072, 30522

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}.LayerNorm.{part}": (width,) for part in ("gamma", "beta")}

    found: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (words, width),
        "bert.embeddings.position_embeddings.weight": (512, width),
        "bert.embeddings.token_type_embeddings.weight": (2, width),
        "cls.predictions.bias": (words,),
        **norm("bert.embeddings"),
        **pair_of("bert.pooler.dense", width, width),
        **pair_of("cls.predictions.transform.dense", width, width),
        **norm("cls.predictions.transform"),
        **pair_of("cls.seq_relationship", 2, width),
    }
    for layer in (f"bert.encoder.layer.{number}" for number in range(12)):
        for name in ("query", "key", "value"):
            found |= pair_of(f"{layer}.attention.self.{name}", width, width)
        found |= pair_of(f"{layer}.attention.output.dense", width, width) | norm(f"{layer}.attention.output")
        found |= pair_of(f"{layer}.intermediate.dense", inner, width)
        found |= pair_of(f"{layer}.output.dense", width, inner) | norm(f"{layer}.output")
    return found


@pytest.mark.parametrize(
    ("part", "published", "unread"),
    [
        ("language", vicuna_files, r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
        ("vision", clip_files, r"text_.+|logit_scale|visual_projection\.weight|vision_model\.embeddings\.position_ids"),
        ("bert", bert_files, r"(bert\.pooler|cls)\..+"),
    ],
)
def test_each_part_is_in_the_published_files(model, part, published, unread):
    """Every parameter of the full-size model has a tensor of its shape there, and all unused tensors are expected."""
    if part == "bert":
        with torch.device("meta"):
            whole = BertModel(BertConfig(), add_pooling_layer=False)
    else:
        whole = {"language": model.language, "vision": model.vision.model}[part]
    shapes = published()
    found = find(SimpleNamespace(name=part, shapes=shapes), whole)
    assert all(found.shapes[name] == tuple(p.shape) for name, p in whole.named_parameters())
    left = set(shapes) - set(found.of.values())
    assert left and all(re.fullmatch(unread, name) for name in left)
    assert len(set(found.of.values())) == len(list(whole.named_parameters())), "a tensor serves twice"


def test_the_modern_model_has_the_published_sizes_and_fits_on_one_gpu(monkeypatch):
    """SigLIP 2 So400m NaFlex and Qwen3-1.7B have the sizes that their authors publish."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = load_run(configs_folder() / "onediff_2b.yaml")
    with torch.device("meta"):
        model = OneDiffModel(architecture_only(config.model))
    counts = {part: total for part, (total, _) in trainable(model).items()}
    assert counts["vision"] == pytest.approx(428e6, rel=0.01)
    assert counts["language"] == 1_720_574_976
    gpu = gpu_named("h100-80g")
    for name in config.phases:
        plan = plan_phase(config, name, setup_of(config, name, 1, 1), gpu)
        assert plan.fits and {part: total for part, (total, _) in plan.parameters.items()} == counts
