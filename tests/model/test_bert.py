"""Initialising the delta module from BERT."""

import pytest
import torch
from transformers import BertConfig, BertModel

from onediff.config.model import DeltaConfig
from onediff.errors import UserError
from onediff.model.bert import initialise_from_bert
from onediff.model.delta import DeltaModule


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, vocab_size=20)
    model = BertModel(config, add_pooling_layer=False).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder, model


def delta(layers: int = 2, width: int = 16, vision: int = 12) -> DeltaModule:
    torch.manual_seed(0)
    return DeltaModule(DeltaConfig(tokens=4, layers=layers, width=width, heads=2, intermediate=24), vision, levels=1)


def differences(ours, theirs) -> list[str]:
    return [name for name, weight in theirs.state_dict().items() if not ours.state_dict()[name].equal(weight)]


@torch.no_grad()
def test_self_attention_and_feed_forward_become_berts_layers(bert):
    """Not only the weights but also the outputs equal those of BERT's own layer."""
    folder, model = bert
    made = delta().eval()
    initialise_from_bert(made, str(folder))
    x = torch.randn(1, 5, 16)
    for ours, theirs in zip(made.layers, model.encoder.layer, strict=False):
        own = ours.self_attention
        attended = own(x, own.key(x), own.value(x))
        torch.testing.assert_close(
            ours.norm(attended + ours.contract(torch.nn.functional.gelu(ours.expand(attended)))),
            theirs(x)[0] if isinstance(theirs(x), tuple) else theirs(x),
            rtol=1e-4,
            atol=1e-5,
        )


def test_cross_attention_copies_matching_shapes(bert):
    folder, model = bert
    narrow, before = delta(), delta()
    initialise_from_bert(narrow, str(folder))
    wide = delta(vision=16)
    initialise_from_bert(wide, str(folder))
    for number, theirs in enumerate(model.encoder.layer[:2]):
        inner = theirs.attention.self
        for made in (narrow, wide):
            cross = made.layers[number].cross_attention
            assert not differences(cross.query, inner.query)
            assert not differences(cross.output, theirs.attention.output.dense)
            assert not differences(cross.norm, theirs.attention.output.LayerNorm)
        assert not differences(wide.layers[number].cross_attention.key, inner.key)
        assert not differences(wide.layers[number].cross_attention.value, inner.value)
        # The tower's width is another: key and value stay as they were.
        kept = before.layers[number].cross_attention
        assert not differences(narrow.layers[number].cross_attention.key, kept.key)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ({"layers": 4}, "has 3 layers of width 16, but the delta module has 4 of width 16"),
        ({"width": 20}, "has 3 layers of width 16, but the delta module has 2 of width 20"),
    ],
)
def test_a_bert_of_another_shape_is_refused(bert, module, message):
    with pytest.raises(UserError, match=message):
        initialise_from_bert(delta(**module), str(bert[0]))


def test_a_missing_bert_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"model.delta.bert: cannot read") as refused:
        initialise_from_bert(delta(), str(tmp_path))
    assert "\n" not in str(refused.value)
