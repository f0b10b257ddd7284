"""Blocks and ranges of parameters, and models loaded from Hugging Face folders range by range."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import HOUSE
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    Dinov2Config,
    LlamaConfig,
    SiglipVisionConfig,
    ViTConfig,
    ViTForImageClassification,
)

from onediff.data.manifest import file_sha256
from onediff.errors import UserError
from onediff.parallel import pretrained_files
from onediff.parallel.block import Block, BlockRange, overlaps
from onediff.parallel.placement import Placement
from onediff.parallel.pretrained_files import PretrainedFiles
from onediff.parallel.safetensors_writer import Entry, write_safetensors
from onediff.parallel.topology import Topology
from onediff.ranks import Ranks

ALONE = Placement(Topology(Ranks(), 1, None))
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def random_cut(shape: tuple[int, ...], dim: int, chance: random.Random) -> list[BlockRange]:
    """Blocks of one parameter along `dim`, each split into ranges, as held by T × D ranks."""
    parts = chance.choice([n for n in (1, 2, 3, 4) if shape[dim] % n == 0 or dim == 0])
    size = -(-shape[dim] // parts)
    pieces = []
    for part in range(parts):
        block = Block(shape, dim, part * size, size)
        ranges = chance.randint(1, 4)
        length = max(1, -(-block.real // ranges))
        pieces += [BlockRange(block, first, min(length, block.real - first)) for first in range(0, block.real, length)]
    return pieces


def values_of(full: torch.Tensor, piece: BlockRange) -> torch.Tensor:
    """The range as split by torch itself."""
    block = piece.block
    end = min(block.start + block.size, block.shape[block.dim])
    band = full.narrow(block.dim, block.start, max(0, end - block.start))
    return band.reshape(-1)[piece.offset : piece.offset + piece.length]


@pytest.mark.parametrize("seed", range(40))
def test_any_split_can_be_copied_into_any_other(seed):
    chance = random.Random(seed)
    shape = chance.choice([(12,), (7,), (12, 12), (5, 12), (7, 4, 12), (1, 12)])
    dim = chance.choice([0, len(shape) - 1])
    full = torch.arange(1.0, 1.0 + torch.Size(shape).numel()).view(shape)
    sources = random_cut(shape, dim, chance)
    for target in random_cut(shape, dim, chance):
        copied = torch.zeros(target.length)
        for source in sources:
            stored = values_of(full, source)
            for overlap in overlaps(source, target):
                overlap.copy(stored.narrow(0, overlap.source_start, overlap.source_length), copied)
        assert torch.equal(copied, values_of(full, target))


def test_a_whole_parameter_and_one_split_along_another_dimension():
    shape = (6, 8)
    full = torch.arange(48.0).view(shape)
    for target in (BlockRange(Block(shape, 1, 4, 4), 3, 17), BlockRange(Block.whole(shape), 5, 30)):
        for source in (BlockRange(Block.whole(shape), 0, 48), BlockRange(Block(shape, 1, 0, 8), 0, 48)):
            copied = torch.zeros(target.length)
            for overlap in overlaps(source, target):
                overlap.copy(full.reshape(-1).narrow(0, overlap.source_start, overlap.source_length), copied)
            assert torch.equal(copied, values_of(full, target))


def test_the_writer_writes_the_same_bytes_as_the_library(tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = {"b": torch.randn(3, 5), "a": torch.arange(7), "c": torch.randn(4).bfloat16(), "none": torch.zeros(0, 3)}
    entries = [Entry(name, t.dtype, t.shape, lambda t=t: t) for name, t in tensors.items()]
    written = write_safetensors(tmp_path / "x.safetensors", entries, {"format": "pt"})
    loaded = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[name], t) and loaded[name].dtype == t.dtype for name, t in tensors.items())
    assert written.bytes == (tmp_path / "x.safetensors").stat().st_size
    assert written.sha256 == file_sha256(tmp_path / "x.safetensors")
    one = {"w": torch.randn(4, 4)}
    write_safetensors(tmp_path / "y", [Entry("w", torch.float32, (4, 4), lambda: one["w"])], {"format": "pt"})
    save_file(one, tmp_path / "z", {"format": "pt"})
    assert (tmp_path / "y").read_bytes() == (tmp_path / "z").read_bytes()


def llama(**changes: object) -> LlamaConfig:
    return LlamaConfig(**SMALL, vocab_size=97, **changes)


@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_of_several_files_is_read(tmp_path, tied):
    reference = AutoModelForCausalLM.from_config(llama(tie_word_embeddings=tied))
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model = ALONE.build(AutoModelForCausalLM, reference.config, str(tmp_path))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, reference(ids).logits)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "language model without its head"])
def test_parts_stored_under_other_names_are_read(tmp_path, kind):
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    images = {"image_size": 28, "patch_size": 14}
    if kind == "clip":  # the tower inside a model of text and images, as OpenAI published it
        CLIPModel(CLIPConfig(vision_config={**vision, **images}, text_config=vision)).save_pretrained(tmp_path)
        architecture = CLIPConfig.from_pretrained(tmp_path).vision_config
    elif kind == "siglip":
        architecture = SiglipVisionConfig(**vision, **images)
        AutoModel.from_config(architecture).save_pretrained(tmp_path)
    elif kind == "dinov2":
        architecture = Dinov2Config(**{**vision, **images})
        AutoModel.from_config(architecture).save_pretrained(tmp_path)
    else:
        AutoModelForCausalLM.from_config(llama()).save_pretrained(tmp_path)
        architecture = llama()
    reference = AutoModel.from_pretrained(tmp_path, config=architecture)
    same(ALONE.build(AutoModel, architecture, str(tmp_path)), reference)
    as_torch(tmp_path)
    same(ALONE.build(AutoModel, architecture, str(tmp_path)), reference)


def as_torch(folder: Path, rename=lambda key: key, **options: object) -> Path:
    """Converts the folder's safetensors file to a `pytorch_model.bin`."""
    weights = {rename(key): tensor for key, tensor in load_file(folder / "model.safetensors").items()}
    torch.save(weights, folder / "pytorch_model.bin", **options)
    (folder / "model.safetensors").unlink()
    return folder


def weight_names(folder: Path) -> set[str]:
    """The names of the tensors in a folder's only file."""
    return set(load_file(folder / "model.safetensors"))


def same(model: torch.nn.Module, reference: torch.nn.Module) -> None:
    """Both have the same parameters and buffers."""
    for kind in ("named_parameters", "named_buffers"):
        for (name, a), (_, b) in zip(getattr(model, kind)(), getattr(reference, kind)(), strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("zipped", [True, False], ids=["PyTorch 1.6 and later", "before"])
def test_names_of_older_releases_are_read_as_by_transformers(tmp_path, zipped):
    BertModel(BertConfig(**SMALL)).save_pretrained(tmp_path)

    def old(key: str) -> str:
        key = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        return f"bert.{key}"

    as_torch(tmp_path, old, _use_new_zipfile_serialization=zipped)
    architecture = BertConfig.from_pretrained(tmp_path)
    same(ALONE.build(AutoModel, architecture, str(tmp_path)), AutoModel.from_pretrained(tmp_path))


def test_experts_stored_one_by_one_and_buffers_of_the_weights_are_read(tmp_path):
    """As in DeepSeek-V3's files: each expert's matrices separately, and the router's correction as a buffer."""
    config = AutoConfig.for_model(
        "glm4_moe",
        **SMALL,
        moe_intermediate_size=24,
        n_routed_experts=4,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        num_key_value_heads=4,
    )
    reference = AutoModelForCausalLM.from_config(config)
    for buffer in reference.buffers():
        if buffer.numel() == 4:
            buffer.copy_(torch.arange(4.0))
    reference.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert any("experts.3.up_proj" in key for key in stored)
    same(ALONE.build(AutoModelForCausalLM, config, str(tmp_path)), reference)


def test_safetensors_are_preferred(tmp_path):
    reference = AutoModelForCausalLM.from_config(llama())
    reference.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    same(ALONE.build(AutoModelForCausalLM, llama(), str(tmp_path)), reference)


@pytest.mark.parametrize("part", ["tower", "language model"])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_missing_tensors_are_an_error_by_name(tmp_path, part, form):
    auto = AutoModel if part == "tower" else AutoModelForCausalLM
    architecture = CLIPVisionConfig(**SMALL, image_size=28, patch_size=14) if part == "tower" else llama()
    auto.from_config(architecture).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = [key for key in weights if ".layers.1." in key and "mlp" in key]
    save_file({key: tensor for key, tensor in weights.items() if key not in lost}, tmp_path / "model.safetensors")
    if form == "bin":
        as_torch(tmp_path)
    with pytest.raises(UserError, match=rf"lack {len(lost)} of the \d+ tensors of a \w+: .*layers\.1\.mlp"):
        ALONE.build(auto, architecture, str(tmp_path))


def test_a_tower_published_without_its_pooler_is_read(tmp_path):
    """Such as google/vit-base-patch16-224, trained to classify. OneDiff does not use poolers."""
    architecture = ViTConfig(**SMALL, image_size=28, patch_size=14)
    reference = ViTForImageClassification(architecture)
    reference.save_pretrained(tmp_path)
    assert any(key.startswith("vit.encoder.layer.0.attention.attention.query") for key in weight_names(tmp_path))
    model = ALONE.build(AutoModel, architecture, str(tmp_path))
    pixels = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        expected = reference(pixels, output_hidden_states=True).hidden_states
        for ours, theirs in zip(model(pixels, output_hidden_states=True).hidden_states, expected, strict=True):
            assert torch.equal(ours, theirs)


def test_files_that_do_not_match_are_refused_with_one_line(tmp_path, monkeypatch):
    def refused(config: LlamaConfig, folder: Path, message: str) -> None:
        with pytest.raises(UserError, match=message) as error:
            ALONE.build(AutoModelForCausalLM, config, str(folder))
        assert "\n" not in str(error.value)

    AutoModelForCausalLM.from_config(llama()).save_pretrained(tmp_path)
    wider = LlamaConfig(**{**SMALL, "intermediate_size": 64}, vocab_size=97)
    refused(
        wider,
        tmp_path,
        r"gate_proj.weight is \[48, 32\] in its files, but \[64, 32\] in the configured LlamaForCausalLM",
    )
    refused(llama(tie_word_embeddings=True), tmp_path, r"differ in its files.*set `tie_word_embeddings: false`")
    weights = load_file(tmp_path / "model.safetensors")
    codes = {key: w.to(torch.float8_e4m3fn) if "q_proj" in key else w for key, w in weights.items()}
    save_file(codes, tmp_path / "model.safetensors")
    refused(llama(), tmp_path, r"its weights are quantised \(F8_E4M3 in model.layers.0.self_attn.q_proj.weight\)")
    (tmp_path / "model.safetensors").unlink()
    torch.save({"code": RuntimeError}, tmp_path / "pytorch_model.bin")
    refused(llama(), tmp_path, r"pytorch_model.bin: not readable as PyTorch weights")
    torch.save(weights, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    monkeypatch.setattr(pretrained_files, "READ_WHOLE", 1000)
    refused(llama(), tmp_path, r"written by PyTorch before 1.6, .* rewrite it once: python -c")


def test_faulty_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="has neither model"):
        PretrainedFiles(str(tmp_path))
    AutoModelForCausalLM.from_config(llama()).save_pretrained(tmp_path, max_shard_size="20KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    broken = shutil.copytree(tmp_path, tmp_path / "broken")
    (broken / files[1].name).write_bytes(files[1].read_bytes()[:100])
    with pytest.raises(UserError, match="not readable as safetensors"):
        ALONE.build(AutoModelForCausalLM, llama(), str(broken))
    files[1].unlink()
    with pytest.raises(UserError, match=f"{files[1].name} is missing"):
        PretrainedFiles(str(tmp_path))


@pytest.mark.long
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_peak_memory_is_the_slice_and_no_more_than_a_gigabyte(tmp_path, form):
    """One of four ranks reads its share of a 2 GB model in several files; the peak is its slice plus less than 1 GB."""
    code = HOUSE / "tests" / "support" / "memory_worker.py"
    out = subprocess.run(
        [sys.executable, str(code), str(tmp_path), form], cwd=HOUSE, capture_output=True, text=True, timeout=900
    )
    assert out.returncode == 0, out.stderr[-4000:]
    peaks = json.loads(out.stdout.splitlines()[-1])
    assert peaks["model"] > 2e9
    assert all(peak < peaks["model"] / 4 + 1e9 for peak in peaks["ranks"])
