"""The plan's FLOPs equal those of torch's own counter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from onediff.config.compose import load_run
from onediff.config.model import ModelConfig
from onediff.config.training import Checkpointing, PhaseConfig
from onediff.data.batch import Batch
from onediff.data.planes import Planes
from onediff.data.segments import Segments, each_tensor
from onediff.errors import UserError
from onediff.model.lora import add_adapters
from onediff.model.onediff import OneDiffModel
from onediff.plan.architecture import DECODERS, TOWERS, decoder_of, sizes_of, tower_of
from onediff.plan.flops import StepCost, step_flops
from onediff.plan.walk import PARTS, Shape, Trained, walk
from onediff.training.activations import checkpoint_layers
from onediff.training.optimizer import freeze, trainable

SHAPE = Shape(rows=2, tokens=48, images=3, pairs=1, targets=11)


def meta_batch(config: ModelConfig, shape: Shape) -> Batch:
    """A batch of this size without values."""
    sizes = sizes_of(config)
    ids = torch.zeros(shape.rows, shape.tokens, dtype=torch.int64, device="meta")
    views = (shape.images * sizes.views, 3, sizes.image, sizes.image)
    patches = (shape.images, sizes.patches, 3 * sizes.tower.patch**2)
    every, paired = shape.images * sizes.image_tokens, 2 * shape.pairs * sizes.image_tokens
    planes = Planes(
        lengths=(sizes.image_tokens,) * shape.images,
        chosen=torch.zeros(every, dtype=torch.int64, device="meta"),
        boxes=torch.zeros(every, 4, device="meta"),
        roles=torch.zeros(paired, dtype=torch.int64, device="meta"),
        pairs=each_tensor(Segments.of([2 * sizes.image_tokens] * shape.pairs), lambda tensor: tensor.to("meta")),
        paired=each_tensor(Segments.of([sizes.image_tokens] * 2 * shape.pairs), lambda tensor: tensor.to("meta")),
    )
    return Batch(
        token_ids=ids,
        position_ids=ids,
        segment_ids=None,
        images=torch.zeros(views if sizes.patches is None else patches, dtype=torch.uint8, device="meta"),
        planes=planes if sizes.views > 1 else None,
        image_places=torch.zeros(shape.images * sizes.image_tokens, dtype=torch.int64, device="meta"),
        pairs=shape.pairs,
        delta_places=torch.zeros(shape.pairs * sizes.delta.tokens, dtype=torch.int64, device="meta"),
        target_places=torch.zeros(shape.targets, dtype=torch.int64, device="meta"),
        target_ids=torch.zeros(shape.targets, dtype=torch.int64, device="meta"),
        target_sources=torch.zeros(shape.targets, dtype=torch.int64, device="meta"),
    )


def meta_model(config: ModelConfig) -> OneDiffModel:
    """The model on the meta device, without its weights."""
    config = config.model_copy(
        update={
            "vision": config.vision.model_copy(update={"name": None}),
            "delta": config.delta.model_copy(update={"bert": None}),
            "language": config.language.model_copy(update={"name": None, "tokenizer": "none"}),
        }
    )
    with torch.device("meta"):
        return OneDiffModel(config).train()


def counted(config: ModelConfig, shape: Shape, trains: tuple[str, ...], checkpointing: Checkpointing) -> int:
    """torch's count for a forward and a backward pass, on the meta device, so that any size is quick."""
    model = meta_model(config)
    for part in PARTS:
        getattr(model, part).requires_grad_(part in trains)
    return counted_of(model, config, shape, checkpointing)


def counted_of(model: OneDiffModel, config: ModelConfig, shape: Shape, checkpointing: Checkpointing) -> int:
    """The same for a model with some frozen parameters."""
    for part in (model.vision.model, model.language):
        checkpoint_layers(part, checkpointing)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(meta_batch(config, shape)).sum().backward()
    return counter.get_total_flops()


@pytest.fixture(autouse=True)
def _no_look_into_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps transformers from reading position ids to find packed rows, which is impossible on the meta device."""
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda _: None)


PHASES = {
    "warm-up": ("vision", "projector", "language"),
    "one": ("delta", "projector"),
    "two": PARTS,
    "language": ("language",),
    "delta": ("delta",),
    "vision": ("vision",),
}


@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("phase", PHASES)
def test_the_demos_flops_equal_torchs_count(phase, checkpointing):
    config = load_run("configs/demo.yaml").model
    found = step_flops(sizes_of(config), SHAPE, Trained(PHASES[phase]), checkpointing)
    assert sum(part.hardware for part in found.values()) == counted(config, SHAPE, PHASES[phase], checkpointing)


@pytest.mark.parametrize("phase", ["one", "two"])
def test_the_paper_models_flops_equal_torchs_count(phase):
    config = load_run("configs/onediff_7b.yaml").model
    shape = Shape(rows=2, tokens=1400, images=4, pairs=2, targets=100)
    found = step_flops(sizes_of(config), shape, Trained(PHASES[phase]), "full")
    assert sum(part.hardware for part in found.values()) == counted(config, shape, PHASES[phase], "full")


VISION = {
    "clip": {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 16},
    "siglip": {"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 16},
    "dinov2": {"model_type": "dinov2", "image_size": 32, "patch_size": 16},
    "giant": {"model_type": "dinov2", "image_size": 32, "patch_size": 16, "use_swiglu_ffn": True},
    "naflex": {"model_type": "siglip2_vision_model", "num_patches": 4, "patch_size": 16},
    "tiles": {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 16},
}
IMAGES = {"naflex": {"fit": "native", "max_patches": 6}, "tiles": {"size": 32, "fit": "tiles", "max_tiles": 3}}
LANGUAGE = {
    "llama": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "num_key_value_heads": 2},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 24},
}


BESIDE = dict(zip(VISION, [*LANGUAGE, "llama", "llama"], strict=True))
QUICK = ("giant", "tiles")  # the layers of the one and the views of the other are most unlike the demo's


@pytest.mark.parametrize(
    ("vision", "language"),
    [pytest.param(*pair, marks=[pytest.mark.long] * (pair[0] not in QUICK)) for pair in BESIDE.items()],
)
def test_flops_of_other_towers_and_language_models_equal_torchs_count(vision, language):
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = ModelConfig.model_validate(
        {
            "vision": {
                "config": {**small, **VISION[vision]},
                "levels": [1, 2],
                "output_level": -2,  # the last layer is computed, and has no backward pass
                "image": IMAGES.get(vision, {"size": 32}),
            },
            "delta": {"kind": "residual", "tokens": 4, "layers": 2, "width": 32, "heads": 2, "intermediate": 48},
            "language": {"config": {**small, "vocab_size": 96, **LANGUAGE[language]}, "tokenizer": "none"},
        }
    )
    for trains in (PARTS, ("delta", "projector"), ("vision",)):
        for checkpointing in ("none", "full"):
            found = step_flops(sizes_of(config), SHAPE, Trained(trains), checkpointing)
            assert sum(part.hardware for part in found.values()) == counted(config, SHAPE, trains, checkpointing)
    weights = walk(sizes_of(config), SHAPE, Trained(PARTS)).weights
    for part in PARTS:
        planned = sum(weight.numel for weight in weights if weight.part == part)
        assert planned == sum(p.numel() for p in getattr(meta_model(config), part).parameters()), part


@pytest.mark.parametrize("checkpointing", [pytest.param("none", marks=pytest.mark.long), "full"])
@pytest.mark.parametrize(
    "settings",
    [
        {"lora": {"rank": 4}},
        {"lora": {"rank": 3, "targets": ["q_proj", "down_proj"], "dropout": 0.1}, "train": ["language"]},
        {"vision_last": 2},
        {"vision_last": 3, "train": ["vision", "delta"]},
        {"vision_last": 1, "lora": {"rank": 2, "targets": ["o_proj"]}},
    ],
)
def test_flops_and_parameters_of_adapters_and_last_layers_equal_torchs_count(settings, checkpointing):
    config = load_run("configs/demo.yaml").model
    phase = PhaseConfig.model_validate({"mix": {"a": 1}, "steps": 1, "global_batch": 1, "micro_batch": 1, **settings})
    model = meta_model(config)
    if phase.lora is not None:
        add_adapters(model.language, phase.lora)
    freeze(model, phase)
    found = step_flops(sizes_of(config), SHAPE, Trained.of(phase), checkpointing)
    assert sum(part.hardware for part in found.values()) == counted_of(model, config, SHAPE, checkpointing)
    weights = walk(sizes_of(config), SHAPE, Trained.of(phase)).weights
    for part, (every, trains) in trainable(model).items():
        planned = [weight for weight in weights if weight.part == part]
        assert sum(weight.numel for weight in planned) == every, part
        assert sum(weight.numel for weight in planned if weight.trains) == trains, part


def test_any_batch_costs_the_sum_of_its_tokens_scores_images_pairs_and_targets():
    sizes = sizes_of(load_run("configs/demo.yaml").model)
    shapes = (SHAPE, Shape(1, 7, 0, 0, 0), replace(SHAPE, scores=900), Shape(5, 200, 9, 4, 321))
    for trains in PHASES.values():
        cost = StepCost.of_phase(sizes, Trained(trains))
        for shape in shapes:
            assert cost.flops(shape) == sum(part.model for part in step_flops(sizes, shape, Trained(trains)).values())


def test_missing_fields_have_transformers_defaults():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    for kind in TOWERS:
        whole = CONFIG_MAPPING[kind]().to_dict()
        assert tower_of({"model_type": kind}) == tower_of(whole), kind
    for kind in DECODERS:
        whole = CONFIG_MAPPING[kind]().to_dict()
        assert decoder_of({"model_type": kind}) == decoder_of(whole), kind


def test_the_paper_model_has_the_parameters_of_the_real_one():
    config = load_run("configs/onediff_7b.yaml").model
    weights = walk(sizes_of(config), SHAPE, Trained(PARTS)).weights
    assert sum(weight.numel for weight in weights) == sum(p.numel() for p in meta_model(config).parameters())


OTHERS = {
    "vit": {},
    "dinov2_with_registers": {"num_register_tokens": 4, "mlp_ratio": 2},
    "dinov3_vit": {"use_gated_mlp": True, "num_register_tokens": 4},
    "aimv2_vision_model": {},
    "internvl_vision": {},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_any_other_tower_is_planned_as_a_vision_transformer_of_its_sizes(kind):
    """Within 5 % of torch's count for a model that consists mostly of the tower; only AIMv2 is off by more than 1 %."""
    small = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = ModelConfig.model_validate(
        {
            "vision": {
                "config": {"model_type": kind, "image_size": 64, "patch_size": 8, **small, **OTHERS[kind]},
                "levels": [1, 2],
                "output_level": -2,
                "image": {"size": 64},
            },
            "delta": {"tokens": 4, "layers": 2, "width": 32, "heads": 2, "intermediate": 48},
            "language": {
                "config": {"model_type": "llama", "vocab_size": 96, **small, "hidden_size": 64, "num_hidden_layers": 1},
                "tokenizer": "none",
            },
        }
    )
    shape = Shape(rows=1, tokens=4, images=4, pairs=1, targets=2)
    for trains in (("delta",), PARTS):
        found = sum(part.model for part in step_flops(sizes_of(config), shape, Trained(trains)).values())
        assert found == pytest.approx(counted(config, shape, trains, "none"), rel=0.05)


def test_a_tower_without_sizes_is_named():
    with pytest.raises(UserError, match=r"cannot plan for towers of type 'beit': the configuration lacks hidden_size"):
        tower_of({"model_type": "beit"})
    with pytest.raises(UserError, match=r"models of type resnet are not supported .*clip_vision_model"):
        tower_of({"model_type": "resnet"})
