"""The paper's model on the meta device: sizes, tokens and shapes, without weights and without network."""

import pytest
import torch

from onediff.config.compose import configs_folder, load_run
from onediff.data.batch import Batch
from onediff.model.build import architecture_only
from onediff.model.onediff import OneDiffModel
from onediff.plan.gpus import gpu_named
from onediff.plan.phase import plan_phase, setup_of
from onediff.plan.rows import TEXT
from onediff.plan.suggest import suggest
from onediff.training.parts import freeze, trainable

PICTURE_TOKENS, DELTA_TOKENS, WORDS = 576, 64, 30


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


def test_phases_are_the_papers_with_the_batches_and_rates_of_llava(config):
    one, two = config.phases["one"], config.phases["two"]
    assert (one.global_batch, one.lr, one.epochs, one.couple) == (256, 1e-3, 1, True)
    assert (two.global_batch, two.lr, two.epochs, two.couple) == (128, 2e-5, 1, False)
    assert one.pack is None and two.pack is None  # a row is a sample, so that the batch is one of samples
    assert sum(two.mix.values()) == 1000
    assert two.mix["llava-665k"] == 665
    assert config.training.precision == "bf16"


@pytest.mark.parametrize("nodes", [1, 2, 4, 8, 16])
def test_it_fits_on_one_to_sixteen_nodes_as_it_stands_and_nearly_as_fast_as_could_be(config, nodes):
    gpus, gpu = 8 * nodes, gpu_named("h100-80g")
    plans = [plan_phase(config, name, setup_of(config, name, gpus, 8), gpu) for name in config.phases]
    assert all(plan.fits for plan in plans)
    best = suggest(config, gpu, gpus, 8, TEXT)
    seconds, least = (sum(plan.rows.steps * plan.duration.expected for plan in found) for found in (plans, best))
    assert seconds < 1.05 * least


def pair_batch() -> Batch:
    """Shapes of one pair with an instruction and an answer."""
    length = 2 * PICTURE_TOKENS + DELTA_TOKENS + WORDS
    numbers = torch.arange(length)
    return Batch(
        token_ids=torch.zeros(1, length, dtype=torch.int64),
        position_ids=numbers[None],
        segment_ids=None,
        pictures=torch.zeros(2, 3, 336, 336, dtype=torch.uint8),
        picture_places=numbers[: 2 * PICTURE_TOKENS],
        pairs=1,
        delta_places=numbers[2 * PICTURE_TOKENS : 2 * PICTURE_TOKENS + DELTA_TOKENS],
        target_places=numbers[-10:-1],
        target_ids=torch.zeros(9, dtype=torch.int64),
        target_sources=torch.zeros(9, dtype=torch.int64),
    ).to(torch.device("meta"))


@torch.no_grad()
def test_shapes_of_a_pair(model, config):
    assert model.vision.tokens == PICTURE_TOKENS
    made = pair_batch()
    output, levels = model.vision(made.pictures)
    assert output.shape == (2, PICTURE_TOKENS, 1024)
    assert model.vision.levels == (8, 16, 24)
    assert model.vision.output_level == 23
    assert [level.shape for level in levels] == [(2, PICTURE_TOKENS, 1024)] * 3
    deltas = model.delta(levels, made.pairs)
    assert deltas.shape == (1, DELTA_TOKENS, 768)
    assert model.delta.level_of_layer == [0, 0, 1, 1, 2, 2]
    embeds = model.embed(made)
    assert embeds.shape == (1, 2 * 576 + 64 + WORDS, 4096)
    assert embeds.dtype == torch.bfloat16
    assert embeds.shape[1] <= config.data.max_tokens
    assert model(made).shape == (9,)


def test_every_weight_has_its_origin(config):
    """Spelling out the architecture does not turn pretrained parts into random ones."""
    assert config.model.vision.name == "openai/clip-vit-large-patch14-336"
    assert config.model.language.name == "lmsys/vicuna-7b-v1.5"
    assert config.model.delta.bert == "bert-base-uncased"
    bare = architecture_only(config.model)
    assert (bare.vision.name, bare.language.name, bare.delta.bert) == (None, None, None)
    assert bare.language.tokenizer == "lmsys/vicuna-7b-v1.5"
