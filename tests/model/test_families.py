"""Each causal language model of transformers has the same loss and output as in its own class, or is refused by name."""

import re
from pathlib import Path

import pytest
import torch
from causal_models import WIDTH, small_config, small_model
from language_rows import LENGTHS, rows_of, sequences
from places import SUPPORT
from processes import run_ranks
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from onediff.config.model import LanguageConfig
from onediff.errors import UserError
from onediff.model.families import COVERED, CUT, ONE_A_ROW, PACKED, ROUTED, SHARED, check_language, check_packs
from onediff.model.language import build_language, target_losses
from onediff.parallel.placement import Placement
from onediff.parallel.ranks import Ranks
from onediff.parallel.topology import Topology

TELLING = (
    "cohere",  # scales its logits
    "gemma2",  # caps logits and scores, and has a window in every second layer
    "gpt_oss",  # has sinks
    "granite",  # scales its logits, scores and embeddings
    "llama",
    "minicpm3",  # divides in front of its head
    "nemotron",  # attends in a way of its own
    "phi",  # has a bias in its head
    "qwen3_next",  # carries a state
    "recurrent_gemma",  # carries a state, and caps its logits
)
DOCS = Path(__file__).parents[2] / "docs" / "parallel.md"


def own_loss(model) -> float:
    """The mean over the targets of both sequences, each computed alone."""
    sums = [float(model(inputs_embeds=e, labels=ids).loss) * (ids.numel() - 1) for e, ids in sequences()]
    return sum(sums) / (sum(LENGTHS) - len(LENGTHS))


def built_here(model, folder: Path):
    """The same model built as in a run: on the meta device first, then from its files."""
    model.save_pretrained(folder)
    config = LanguageConfig(name=str(folder), tokenizer=str(folder))
    return build_language(config, placement=Placement(Topology(Ranks(), 1, None))).eval()


@torch.no_grad()
def compare(kind: str, folder: Path) -> None:
    """Compares losses, unpacked and packed, and tokens generated after padding, with those of the model's own class."""
    model = small_model(kind)
    ours, expected = built_here(model, folder), own_loss(model)
    alone, batch = rows_of([[0], [1]], max(LENGTHS), packed=False)
    for chunk in (None, 5):
        assert float(target_losses(ours, alone, batch, chunk).mean()) == pytest.approx(expected, rel=2e-5)
    if kind in PACKED:
        check_packs(ours.config, "phases.one.pack")
        together, batch = rows_of([[0, 1]], sum(LENGTHS) + 3, packed=True)
        assert float(target_losses(ours, together, batch).mean()) == pytest.approx(expected, rel=2e-5)
    else:
        with pytest.raises(UserError, match=f"phases.one.pack: .* type {kind}"):
            check_packs(ours.config, "phases.one.pack")
    seen = torch.ones(2, max(LENGTHS), dtype=torch.long)
    seen[1, : max(LENGTHS) - LENGTHS[1]] = 0
    padded = torch.stack([torch.cat([torch.zeros(max(LENGTHS) - e.shape[1], WIDTH), e[0]]) for e, _ in sequences()])
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    theirs = model.generate(inputs_embeds=padded, attention_mask=seen, **options)
    assert ours.generate(inputs_embeds=padded, attention_mask=seen, **options).equal(theirs)


@pytest.mark.parametrize("kind", TELLING)
def test_the_loss_and_the_output_equal_the_models_own(kind, tmp_path):
    compare(kind, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_every_model_type_is_equal_or_refused(kind, tmp_path):
    if kind in COVERED:
        compare(kind, tmp_path)
    else:
        with pytest.raises(UserError, match=f"models of type {kind} are not supported"):
            check_language(type("Architecture", (), {"model_type": kind, "get_text_config": lambda self: self})())


@torch.no_grad()
@pytest.mark.parametrize(
    "kind", ["mixtral", *(pytest.param(k, marks=pytest.mark.long) for k in sorted(ROUTED - {"mixtral"}))]
)
def test_the_routers_loss_has_the_same_weight_as_in_the_models_own_loss(kind, tmp_path):
    model = small_model(kind, output_router_logits=True, router_aux_loss_coef=0.5)
    embeds, batch = rows_of([[0], [1]], max(LENGTHS), packed=False)
    seen = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    labels = batch.token_ids.masked_fill(seen == 0, -100)
    theirs = model(inputs_embeds=embeds, attention_mask=seen, labels=labels)
    losses = target_losses(built_here(model, tmp_path), embeds, batch)
    assert float(losses.mean()) == pytest.approx(float(theirs.loss), rel=2e-5)
    assert float(theirs.aux_loss) > 0.1


def test_unsupported_models_are_refused_with_one_line():
    with pytest.raises(
        UserError, match="models of type gemma3 are not supported \\(its inner language model, gemma3_text, is\\)"
    ):
        check_language(small_config("gemma3"))
    with pytest.raises(UserError, match=r"model\.language: models of type bert are not supported"):
        check_language(small_config("bert"))
    with pytest.raises(UserError, match="loss of jetmoe's router is not supported; set output_router_logits to false"):
        check_language(small_config("jetmoe", output_router_logits=True))
    with pytest.raises(UserError, match="set use_sliding_window to false"):
        check_language(small_config("qwen2_moe", use_sliding_window=True))


@pytest.mark.long
def test_two_tensor_ranks_give_the_models_own_loss_and_gradients():
    """For every supported type; test_tensor_parallel.py also tests llama, mistral, qwen2 and qwen3."""
    run_ranks(SUPPORT / "families_worker.py", sorted(CUT), 2, timeout=600)


@pytest.mark.long
def test_four_context_ranks_give_the_models_own_losses_and_gradients():
    """For every supported type, with fewer key heads than ranks."""
    run_ranks(SUPPORT / "context_worker.py", ["1", *sorted(SHARED)], 4, timeout=1200)


def test_the_documentation_lists_the_supported_types():
    table = DOCS.read_text().split("## Which language models", 1)[1].split("\n## ")[0]
    found = {
        what: frozenset(re.findall(r"`(\w+)`", line))
        for what, line in re.findall(r"^\| (packed|one per row|C > 1|T > 1|routers) \| (.*) \|$", table, re.MULTILINE)
    }
    assert found == {"packed": PACKED, "one per row": ONE_A_ROW, "C > 1": SHARED, "T > 1": CUT, "routers": ROUTED}
    assert CUT < COVERED and ROUTED < COVERED and SHARED < COVERED and not PACKED & ONE_A_ROW
    assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() >= COVERED
    assert all(kind in AutoModelForCausalLM._model_mapping._model_mapping for kind in COVERED)
