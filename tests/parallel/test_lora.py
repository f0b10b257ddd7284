"""LoRA adapters: added, trained alone, merged, saved in `peft`'s format."""

from pathlib import Path

import pytest
import torch
from models import tiny_config
from transformers import AutoModelForCausalLM, LlamaConfig

from onediff.config.model import LoraConfig
from onediff.config.training import OptimizerConfig, PhaseConfig
from onediff.errors import UserError
from onediff.model.lora import add_adapters, initial, is_adapter, plain_name, save_adapter
from onediff.model.onediff import OneDiffModel
from onediff.parallel.block import Block
from onediff.parallel.placement import Placement
from onediff.parallel.safetensors_writer import Entry, write_safetensors
from onediff.parallel.topology import Topology
from onediff.ranks import Ranks
from onediff.training.checkpoint import load_weights, read_weights
from onediff.training.checkpoint.consolidate import consolidate
from onediff.training.checkpoint.files import Files
from onediff.training.checkpoint.manifest import CheckpointManifest, StoredParameter
from onediff.training.checkpoint.weights import must_keep_adapters
from onediff.training.optimizer import freeze, parameter_groups, trainable

ALONE = Placement(Topology(Ranks(), 1, None))
LORA = LoraConfig(rank=4, alpha=8, targets=("q_proj", "down_proj"))
PHASE = PhaseConfig(mix={"a": 1}, steps=1, global_batch=1, micro_batch=1, lora=LORA)


def adapted(seed: int = 0) -> OneDiffModel:
    """A tiny model with trained adapters."""
    torch.manual_seed(seed)
    model = OneDiffModel(tiny_config(), placement=ALONE, lora=LORA)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model.eval()


def checkpoint_of(model: torch.nn.Module, folder: Path, lora: LoraConfig | None) -> Path:
    """The model as a finished checkpoint, written by hand."""
    path = folder / "step-00000001"
    path.mkdir(parents=True)
    entries, parameters, file = [], {}, "rank-00000-of-00001.safetensors"
    for name, p in model.named_parameters():
        flat = p.detach().reshape(-1)
        entries.append(Entry(f"weight/{name}", flat.dtype, flat.shape, lambda flat=flat: flat))
        whole = Block.whole(p.shape)
        parameters[name] = StoredParameter(
            p.shape, "float32", 0, ["weight"], None, [(file, 0, whole.size, 0, p.numel())]
        )
    written = write_safetensors(path / file, entries, {"identity": "x", "step": "1"})
    extra = {"lora": None if lora is None else lora.model_dump(mode="json")}
    files = Files.of_json({file: written._asdict()})
    CheckpointManifest("x", 1, 1, 1, 3, extra, [], parameters, files=files).write(path)
    return path


def logits(language: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return language(torch.arange(20)[None]).logits


def test_new_adapters_change_nothing_and_are_the_same_for_the_same_seed():
    torch.manual_seed(3)
    plain = OneDiffModel(tiny_config()).eval()
    torch.manual_seed(3)
    model = OneDiffModel(tiny_config(), placement=ALONE, lora=LORA).eval()
    assert torch.equal(logits(model.language), logits(plain.language))
    names = [name for name, _ in model.language.named_parameters() if is_adapter(name)]
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == {"q_proj", "down_proj"}
    first = next(p for name, p in model.language.named_parameters() if "lora_A" in name)
    name = next(name for name in names if "lora_A" in name)
    torch.manual_seed(3)
    assert torch.equal(first, initial(name, tuple(first.shape)))
    assert first.abs().max() > 0


def test_only_the_adapters_of_the_language_model_train():
    model = adapted()
    freeze(model, PHASE)
    trains = {name for name, p in model.language.named_parameters() if p.requires_grad}
    assert trains == {name for name, _ in model.language.named_parameters() if is_adapter(name)}
    groups = parameter_groups(model, PHASE, OptimizerConfig(weight_decay=0.1))
    grouped = {id(p) for group in groups for p in group["params"]}
    assert grouped == {id(p) for p in model.parameters() if p.requires_grad}
    total, trained = trainable(model)["language"]
    assert 0 < trained < total / 4
    logits_of = model.language(torch.arange(20)[None]).logits
    logits_of.mean().backward()
    with_gradient = {name for name, p in model.language.named_parameters() if p.grad is not None}
    assert with_gradient == trains


def test_adapters_of_a_checkpoint_are_merged_or_continued(tmp_path):
    model = adapted()
    path = checkpoint_of(model, tmp_path, LORA)
    wanted = logits(model.language)
    # Without adapters: merged.
    plain = OneDiffModel(tiny_config()).eval()
    load_weights(plain, path)
    torch.testing.assert_close(logits(plain.language), wanted, rtol=1e-5, atol=1e-5)
    merged = dict(read_weights(path))
    assert merged.keys() == {name for name, _ in plain.named_parameters()}
    assert all(torch.equal(p, merged[name]) for name, p in plain.named_parameters())
    consolidate(path, tmp_path / "plain")
    # With the same: they go on, bit by bit.
    same = adapted(seed=1)
    load_weights(same, path, lora=LORA)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), model.parameters(), strict=True))
    # With others: started over beside merged weights.
    other = LoraConfig(rank=2, alpha=4, targets=("q_proj", "v_proj"))
    restarted = OneDiffModel(tiny_config(), placement=ALONE, lora=other).eval()
    load_weights(restarted, path, lora=other)
    torch.testing.assert_close(logits(restarted.language), wanted, rtol=1e-5, atol=1e-5)
    assert all(not p.any() for name, p in restarted.named_parameters() if "lora_B" in name)


def test_a_phase_with_adapters_starts_from_one_without(tmp_path):
    torch.manual_seed(5)
    plain = OneDiffModel(tiny_config()).eval()
    path = checkpoint_of(plain, tmp_path, None)
    model = adapted()
    load_weights(model, path, lora=LORA)
    assert torch.equal(logits(model.language), logits(plain.language))
    for name, p in model.named_parameters():
        if not is_adapter(name):
            assert torch.equal(p, dict(plain.named_parameters())[plain_name(name)])


def test_other_adapters_within_a_phase_are_refused(tmp_path):
    path = checkpoint_of(adapted(), tmp_path, LORA)
    must_keep_adapters(path, LORA, "phases.two")
    for other in (None, LORA.model_copy(update={"alpha": 9})):
        with pytest.raises(UserError, match=r"phases\.two\.lora: differs from that of .*step-00000001"):
            must_keep_adapters(path, other, "phases.two")


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    path = checkpoint_of(torch.nn.Linear(3, 3), tmp_path, None)
    with pytest.raises(UserError, match="of another model"):
        load_weights(OneDiffModel(tiny_config()), path)


def test_peft_reads_what_is_saved(tmp_path):
    from peft import PeftModel

    model = adapted()
    path = checkpoint_of(model, tmp_path, LORA)
    torch.manual_seed(0)
    base = OneDiffModel(tiny_config()).eval().language
    kept = {name: p for name, p in model.language.named_parameters() if is_adapter(name)}
    save_adapter(tmp_path / "adapter", LORA, "some/base", kept)
    with_adapter = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(with_adapter), logits(model.language), rtol=1e-6, atol=1e-6)
    merged = with_adapter.merge_and_unload()
    ours = dict(read_weights(path))
    for name, p in merged.named_parameters():
        torch.testing.assert_close(ours[f"language.{name}"], p, rtol=1e-6, atol=1e-6)


def test_pretrained_weights_are_read_below_the_adapters(tmp_path):
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    reference = AutoModelForCausalLM.from_config(LlamaConfig(**small, vocab_size=97))
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    model = ALONE.build(AutoModelForCausalLM, reference.config, str(tmp_path), adapt=lambda m: add_adapters(m, LORA))
    assert torch.equal(logits(model), logits(reference))


def test_a_target_that_matches_no_layer_is_named():
    with pytest.raises(
        UserError, match=r"lora.targets: the language model has no layer 'q_prj' \(did you mean 'q_proj'"
    ):
        OneDiffModel(tiny_config(), placement=ALONE, lora=LoraConfig(targets=("q_prj",)))


def test_invalid_settings_are_refused():
    phase = {"mix": {"a": 1}, "steps": 1, "global_batch": 1, "micro_batch": 1}
    with pytest.raises(ValueError, match="lora: needs `language`"):
        PhaseConfig(**phase, train=["delta"], lora={})
    with pytest.raises(ValueError, match="names no layer"):
        LoraConfig(targets=())
