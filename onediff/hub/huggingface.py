"""Makes an export loadable with Hugging Face `transformers`: configuration, processor, chat template and code.

    config.json, generation_config.json     the architecture, and the tokens that end answers
    processor_config.json, chat_template.jinja
    model.safetensors.index.json            the file of each parameter, and their total size
    modeling_onediff.py, processing_onediff.py, planes_onediff.py
                                            model and processor; they need torch, transformers and Pillow, not this project

The weights stay in `vision/`, `language/`, `delta.safetensors` and `projector.safetensors` and are not duplicated.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open

from onediff.config.data import PromptConfig
from onediff.config.model import ModelConfig
from onediff.config.plugins import DELTA_MODULES, TOWERS
from onediff.data.prompts import DELTA, IMAGE, IMAGE_MARK, Prompter, Turn
from onediff.model.vision import side_of

LOG = logging.getLogger(__name__)
CODE = ("modeling_onediff.py", "processing_onediff.py", "planes_onediff.py")
"""Files of this package copied into every export."""
DELTA_FIELDS = {"kind", "tokens", "layers", "width", "heads", "intermediate"}
"""Fields of the delta module's section that its exported code reads."""
ALONE = "transformers alone cannot load this model"
MODEL = "modeling_onediff.OneDiffForConditionalGeneration"
CONFIG = "modeling_onediff.OneDiffConfig"
PROCESSOR = "processing_onediff.OneDiffProcessor"


def write_huggingface(folder: Path, model: Any, config: ModelConfig, prompt: PromptConfig, tokenizer: Any) -> bool:
    """Adds the files to an export; returns whether that is possible.

    Models with a tower or a delta module from another package, or with prompts tokenised in pieces as in early runs, can
    only be loaded with this project. Logs a warning for these.
    """
    parts = {
        "delta module": (config.delta.kind, DELTA_MODULES),
        "tower": (model.vision.model.config.model_type, TOWERS),
    }
    for part, (kind, plugins) in parts.items():
        if kind in plugins.provided():
            LOG.warning(f"{ALONE}: another package provides its {part}, %s", kind)
            return False
    prompter = Prompter(tokenizer, prompt, config.delta.tokens)
    settings = processor_settings(model, config, prompter)
    if not writes_the_same(prompter, settings, tokenizer):
        LOG.warning(f"{ALONE}: its prompts are tokenised in pieces")
        return False
    generation = {"eos_token_id": stops(prompter), "pad_token_id": tokenizer.eos_token_id, "do_sample": False}
    write(folder / "config.json", root_config(model, config, settings))
    write(folder / "generation_config.json", generation | {"max_new_tokens": 64})
    write(folder / "processor_config.json", settings)
    tokenizer.save_pretrained(folder)  # for tools that look for a tokenizer next to config.json
    (folder / "chat_template.jinja").write_text(chat_template(settings["prompt"]), encoding="utf-8")
    for name in CODE:
        shutil.copyfile(Path(__file__).with_name(name), folder / name)
    write(folder / "model.safetensors.index.json", weights_index(folder))
    return True


def weights_index(folder: Path) -> dict[str, Any]:
    """Maps each parameter of the whole model to its file below `folder`, and gives their total size in bytes.

    For Hugging Face tools; `from_pretrained` of the exported code reads the parts.
    """
    places, size = dict[str, str](), 0
    for file in sorted(folder.rglob("*.safetensors")):
        name = file.relative_to(folder).as_posix()
        part = name.partition("/")[0].removesuffix(".safetensors")
        if part == "adapter":  # already merged into the language model
            continue
        with safe_open(file, "pt") as weights:
            places |= {f"{part}.{key}": name for key in weights.keys()}  # noqa: SIM118 (not a mapping)
        size += file.stat().st_size
    return {"metadata": {"total_size": size}, "weight_map": places}


def root_config(model: Any, config: ModelConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """`config.json` of the whole model."""
    return {
        "model_type": "onediff",
        "architectures": [MODEL.partition(".")[2]],
        "auto_map": {
            "AutoConfig": CONFIG,
            "AutoModel": MODEL,
            "AutoModelForImageTextToText": MODEL,
            "AutoProcessor": PROCESSOR,
        },
        "dtype": str(model.language.dtype).removeprefix("torch."),
        "vision": model.vision.model.config.to_dict(),
        "language": model.language.config.to_dict(),
        "levels": list(config.vision.levels),
        "output_level": config.vision.output_level,
        "delta": config.delta.model_dump(mode="json", include=DELTA_FIELDS),
        **{key: settings[key] for key in ("image", "prompt", "image_token_id", "delta_token_id")},
    }


def processor_settings(model: Any, config: ModelConfig, prompter: Prompter) -> dict[str, Any]:
    """`processor_config.json`: image preprocessing, and the text of the prompt around images and question."""
    parts = prompter.parts(1, answered=False)
    at = next(place for place, part in enumerate(parts) if part.kind == "words")
    around = ["".join(part.text for part in some) for some in (parts[:at], parts[at + 1 :])]
    vocabulary = model.language.get_input_embeddings().num_embeddings
    own = {"tokens": model.vision.tokens, "patch": side_of(model.vision.model.config.patch_size)}
    return {
        "processor_class": PROCESSOR.partition(".")[2],
        "auto_map": {"AutoProcessor": PROCESSOR},
        "image": config.vision.image.model_dump(mode="json") | own,
        "delta_tokens": config.delta.tokens,
        # Beyond the vocabulary, so no text contains them.
        "image_token_id": vocabulary,
        "delta_token_id": vocabulary + 1,
        "ends": stops(prompter),
        "prompt": {
            "start": prompter.start,
            "before": around[0],
            "mark": IMAGE_MARK,
            "after_images": prompter.template.after_images if prompter.template else "",
            "question": prompter.instruction("pair"),
            "behind": around[1],
        },
    }


def stops(prompter: Prompter) -> list[int]:
    """The tokens that end an answer."""
    return list(dict.fromkeys((*prompter.ends, prompter.tokenizer.eos_token_id)))


def writes_the_same(prompter: Prompter, settings: dict[str, Any], tokenizer: Any) -> bool:
    """Whether the exported processor writes exactly the prompts that the model was trained on."""
    from onediff.hub.processing_onediff import OneDiffProcessor

    processor = OneDiffProcessor(tokenizer, settings)
    tokens = settings["image"]["tokens"]
    stand_ins = {settings["image_token_id"]: IMAGE, settings["delta_token_id"]: DELTA}
    for question in (settings["prompt"]["question"], "Which of the two is larger?"):
        ours = prompter.sequence([tokens, tokens], True, [Turn(question, None)]).token_ids
        theirs = processor.token_ids("" if question == settings["prompt"]["question"] else question, [tokens, tokens])
        if [stand_ins.get(token, token) for token in theirs] != ours:
            return False
    return True


def chat_template(prompt: dict[str, Any]) -> str:
    """A Jinja template of one question about two images, for `apply_chat_template` and pipelines."""
    before, mark, after, question, behind = (
        json.dumps(prompt[key], ensure_ascii=False) for key in ("before", "mark", "after_images", "question", "behind")
    )
    return (
        "{%- if messages | length != 1 -%}"
        "{{- raise_exception('OneDiff answers one question about two images') -}}{%- endif -%}"
        "{%- set said = namespace(text='') -%}"
        "{%- if messages[0].content is string -%}{%- set said.text = messages[0].content -%}{%- else -%}"
        "{%- for part in messages[0].content if part.type == 'text' -%}"
        "{%- set said.text = said.text + part.text -%}{%- endfor -%}{%- endif -%}"
        f"{{%- set asked = said.text or {question} -%}}"
        f"{{{{- {before} + ('' if {mark} in asked else {mark} + {after}) + asked + {behind} -}}}}"
    )


def write(path: Path, values: dict[str, Any]) -> None:
    """Writes JSON in Hugging Face's style."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
