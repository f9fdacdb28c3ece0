"""Any pipeline class of diffusers, tiny: built from the configurations in `configurations.json`.

These are what diffusers' own tests build (Apache 2.0): of each class the components, by class and
configuration, and the arguments of a call. Weights, images and tensors are drawn here.
"""

from __future__ import annotations

import importlib
import inspect
import json
import string
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import tokenizers
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from tests.pipelines.parts import clip_tokenizer, randomised, t5_tokenizer
from tests.pipelines.zoo import FAMILIES

CONFIGURATIONS = json.loads((Path(__file__).parent / "configurations.json").read_text())
MARKERS = (  # of prompts of language models that see
    *("<pad>", "<bos>", "<eos>", "<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    *("<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"),
)
VOCABULARY = 2000
SMALL = {"DDPMPipeline": "ddpm", "LDMPipeline": "ldm"}  # those of the zoo
SIDE = 32
SPARED = ("safety_checker", "feature_extractor", "image_encoder", "vae")  # of latents
IMAGES = {"image": "RGB", "mask_image": "L", "control_image": "RGB"}
AREA = 64 * 64  # of the images that a pipeline would make a megapixel of
MOST = 512  # tokens of a text
TRANSFORMS = SimpleNamespace(  # what is used of torchvision's
    InterpolationMode=SimpleNamespace(NEAREST="nearest"),
    functional=SimpleNamespace(
        resize=lambda image, size, interpolation: nn.functional.interpolate(
            image, size, mode=interpolation
        )
    ),
)
CHAT = "{% for m in messages %}{{ m['content'] if m['content'] is string else '' }}{% endfor %}"


def build(name: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline of the class and the arguments of a call of it, without steps and generator."""
    if name in SMALL:
        family = FAMILIES[SMALL[name]]()
        return family.pipe, family.call
    cls = getattr(diffusers, name)
    made = CONFIGURATIONS["pipelines"].get(name) or adopted(cls)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # what a component draws beside its parameters
        components = {key: component(value) for key, value in made["components"].items()}
    fit(components)
    pipe = cls(**components)
    pipe.set_progress_bar_config(disable=True)
    networks = [one for one in components.values() if isinstance(one, diffusers.ModelMixin)]
    for kind in (cls, *map(type, networks)):
        lighten(vars(importlib.import_module(kind.__module__)))
    call = {key: argument(value) for key, value in made["call"].items()}
    told = inspect.signature(cls.__call__).parameters
    latent = inspect.isfunction(cls.__call__) and '"latent"' in inspect.getsource(cls.__call__)
    if "output_type" in told and latent and "pag_scale" not in told:  # that leaves its processors
        call.setdefault("output_type", "latent")
    return pipe, call


def lighten(module: dict[str, Any]) -> None:
    """A pipeline's module without what would have to be installed, or makes images large."""
    module.setdefault("ftfy", SimpleNamespace(fix_text=str))  # it would tidy texts
    module.setdefault("transforms", TRANSFORMS)
    resize = module.get("calculate_dimensions")
    if resize is not None and resize.__module__ != __name__:
        module["calculate_dimensions"] = lambda area, ratio: resize(min(area, AREA), ratio)


def fit(components: dict[str, Any]) -> None:
    """Tokenizers cut texts where the text encoders' positions end."""
    lengths = [MOST]
    for one in components.values():
        config = getattr(one, "config", None)
        lengths.append(getattr(config, "max_position_embeddings", MOST))
    for one in components.values():
        if isinstance(one, transformers.PreTrainedTokenizerBase):
            one.model_max_length = min(one.model_max_length, *lengths)


def adopted(cls: Any) -> dict[str, Any]:
    """Components and call of the pipeline that is most like one without a configuration.

    What that one has not is taken from whichever has a component of the kind, or an argument of
    the name.
    """
    wanted, told = kinds(cls), inspect.signature(cls.__call__).parameters

    def likeness(name: str) -> tuple[bool, int]:
        other = getattr(diffusers, name)
        own = kinds(other)
        near = cls.__module__.rpartition(".")[0] == other.__module__.rpartition(".")[0]
        return near, 2 * len(wanted.items() & own.items()) - len(own.items() - wanted.items())

    known = CONFIGURATIONS["pipelines"]
    order = sorted(filter(partial(hasattr, diffusers), known), key=likeness, reverse=True)
    components: dict[str, Any] = {}
    call: dict[str, Any] = {
        key: {"image": [SIDE, SIDE], "mode": mode} for key, mode in IMAGES.items() if key in told
    }
    for number, name in enumerate(order):
        own = kinds(getattr(diffusers, name))
        for key, value in known[name]["components"].items():
            for mine, kind in wanted.items():
                if (
                    kind == own.get(key)
                    and value is not None
                    and (mine == key or isinstance(value, dict))
                ):
                    components.setdefault(mine, value)
        for key, value in known[name]["call"].items():
            empty = key in told and told[key].default is inspect.Parameter.empty
            if key in told and (number == 0 or empty):
                call.setdefault(key, value)
    parameters = inspect.signature(cls.__init__).parameters
    for key, p in parameters.items():
        if inspect.isclass(p.annotation) and issubclass(p.annotation, diffusers.SchedulerMixin):
            path = f"{p.annotation.__module__}.{p.annotation.__name__}"
            components.setdefault(key, {"class": path})
        if key in wanted and key not in components and p.default is inspect.Parameter.empty:
            if key not in SPARED:
                raise LookupError(f"no tiny configuration is known of its {key}")
            components[key] = None
    return {"components": components, "call": call}


def kinds(cls: Any) -> dict[str, str]:
    """The components of a pipeline class, and what they are annotated as."""
    parameters = inspect.signature(cls.__init__).parameters
    return {name: str(p.annotation) for name, p in list(parameters.items())[1:]}


def named(path: str) -> Any:
    """What a dotted name means."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def component(made: Any) -> Any:
    """A component of its description: a list of them, a plain value or one that is built."""
    if isinstance(made, list):
        return [component(one) for one in made]
    if not isinstance(made, dict):
        return made
    if "part" in made:
        return part(CONFIGURATIONS["parts"][made["part"]])
    if "class" in made and "nets" not in made:
        return part(made)
    if "nets" in made:
        return named(made["class"])(component(made["nets"]))
    if "tokenizer" in made:
        return tokenizer(made["tokenizer"])
    if "processor" in made:
        return processor(made["processor"])
    return Content()


def part(made: dict[str, Any]) -> Any:
    """A network, a scheduler or a processor of images by class and configuration."""
    cls, config = named(made["class"]), made.get("config", {})
    if "config_class" in made:
        return randomised(cls(small(named(made["config_class"]).from_dict(config))))
    one = cls(**config)
    return randomised(one) if isinstance(one, nn.Module) else one


def small(config: Any) -> Any:
    """A configuration of transformers with a small vocabulary, that of `tokenizer`."""
    if getattr(config, "vocab_size", 0) > VOCABULARY:
        config.vocab_size = VOCABULARY
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(config, name, 0)
    for name in config.sub_configs:
        small(getattr(config, name))
    return config


class Content(diffusers.ModelMixin, diffusers.ConfigMixin):
    """A safety checker that finds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("place", torch.zeros(1), persistent=False)

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def tokenizer(name: str) -> Any:
    """A tokenizer: CLIP's and T5's spell, the others' is a common one that counts words."""
    if name.startswith("CLIP"):
        return clip_tokenizer(length=77)
    if name.startswith("T5"):
        return t5_tokenizer()
    if name.startswith("Roberta"):
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *string.printable]
        return transformers.RobertaTokenizer({word: i for i, word in enumerate(special)}, [])
    if name.startswith("ByT5"):
        return transformers.ByT5Tokenizer()
    words = [*MARKERS, *string.printable]
    spelling = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>")
    )
    spelling.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    spelling.post_processor = tokenizers.processors.TemplateProcessing(
        "<bos> $A", special_tokens=[("<bos>", words.index("<bos>"))]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=spelling,
        additional_special_tokens=list(MARKERS),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "grid_bos_token": "<|vision_start|>",
            "grid_eos_token": "<|vision_end|>",
        },
        chat_template=CHAT,
        model_max_length=MOST,
    )


def processor(name: str) -> Any:
    """A processor of images and texts with such a tokenizer."""
    own = {"check_argument_for_proper_class": lambda *_: None}  # videos would need torchvision
    cls = type(name, (getattr(transformers, name),), own)
    patch = 16 if name.startswith("Qwen3") else 14
    images: Any = transformers.Qwen2VLImageProcessorPil(patch_size=patch)
    if name.startswith("CLIP"):
        images = transformers.CLIPImageProcessorPil()
    return cls(image_processor=images, tokenizer=tokenizer(name), chat_template=CHAT)


def argument(made: Any) -> Any:
    """An argument of its description: images and tensors are drawn, the rest stands there."""
    if isinstance(made, list):
        return [argument(one) for one in made]
    if not isinstance(made, dict):
        return made
    if "image" in made:
        width, height = made["image"]
        values = uniform([height, width, 3], 0, 255).byte().numpy()
        return Image.fromarray(values).convert(made["mode"])
    if "tensor" in made:
        dtype = getattr(torch, made["dtype"])
        return uniform(made["tensor"], made["low"], made["high"]).to(dtype)
    if "array" in made:
        return uniform(made["array"], made["low"], made["high"]).numpy().astype(made["dtype"])
    if "dtype" in made:
        return getattr(torch, made["dtype"])
    if "new" in made:
        return named(made["new"])(**argument(made["fields"]))
    return {key: argument(value) for key, value in made.items()}


def uniform(shape: list[int], low: float, high: float) -> Tensor:
    """Uniform numbers in an interval."""
    generator = torch.Generator().manual_seed(0)
    return low + (high - low) * torch.rand(shape, generator=generator)
