"""Captions pairs with exports by torch and transformers alone; importing this project fails here.

    python without_onediff.py PAIRS.json EXPORT …

Prints JSON: for each export the captions by `AutoModel`, all pairs in one batch, with the tokens of each, and those by
`pipeline`, one by one; and which packages were imported.
"""

import importlib.abc
import json
import os
import sys

FORBIDDEN = {"onediff", "launcher", "data_prep"}


class Refuses(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Refuses())
os.environ["HF_HUB_OFFLINE"] = "1"
from transformers import AutoModel, AutoProcessor, pipeline  # noqa: E402


def said(folder, pairs):
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(images=pairs)
    generated = model.generate(**inputs)
    ask = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
    alone = []
    for before, after in pairs:
        content = [{"type": "image", "url": before}, {"type": "image", "url": after}]
        made = ask(text=[{"role": "user", "content": content}], return_full_text=False)
        alone.append(made[0]["generated_text"])
    tokens = generated[:, inputs["input_ids"].shape[1] :].tolist()
    return {"together": processor.captions(generated, inputs), "tokens": tokens, "alone": alone}


with open(sys.argv[1]) as file:
    pairs = json.load(file)
exports = [said(folder, pairs) for folder in sys.argv[2:]]
packages = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"exports": exports, "packages": packages}))
