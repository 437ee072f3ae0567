"""How LoRA files name what they hold: the dialects of trainers, told from names alone.

A name says three things: which network of a pipeline is meant, the module in it, and what of the adapter the tensor is.
kohya's tools write modules flat, with `_` for every dot.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from lading.catalog.normalise import may_hold_adapters

LORA, DORA = "LoRA", "DoRA"

DENOISER = "denoiser"
"""What a UNet or a transformer is called here: LoRA files rarely say which of the two it is."""

_KOHYA_ENDS = {"down": ".lora_down.weight", "up": ".lora_up.weight", "alpha": ".alpha"}
"""How kohya's tools end the names of what they train."""

_ENDS: tuple[tuple[str, str, str, str], ...] = (
    ("xlabs", LORA, "down", r"\.processor\.(?:qkv|proj)_lora[12]?\.down\.weight"),
    ("xlabs", LORA, "up", r"\.processor\.(?:qkv|proj)_lora[12]?\.up\.weight"),
    *(("kohya" if part != "alpha" else "", LORA, part, re.escape(end)) for part, end in _KOHYA_ENDS.items()),
    ("kohya", "LoRA with a Tucker core", "core", r"\.lora_mid\.weight"),
    ("kohya", DORA, "magnitude", r"\.dora_scale"),
    ("diffusers", LORA, "down", r"(?:\.lora|_lora|\.lora_linear_layer)\.down\.weight"),
    ("diffusers", LORA, "up", r"(?:\.lora|_lora|\.lora_linear_layer)\.up\.weight"),
    ("peft", LORA, "down", r"\.lora_A\.weight"),
    ("peft", LORA, "up", r"\.lora_B\.weight"),
    ("peft", LORA, "up_bias", r"\.lora_B\.bias"),
    ("peft", DORA, "magnitude", r"\.lora_magnitude_vector(?:\.weight)?"),
    ("diffsynth", LORA, "down", r"\.lora_A\.[^.]+\.weight"),
    ("diffsynth", LORA, "up", r"\.lora_B\.[^.]+\.weight"),
    ("kohya", "LoHa", "factor", r"\.hada_(?:w[12]_[ab]|t[12])"),
    ("kohya", "LoKr", "factor", r"\.lokr_(?:w[12](?:_[ab])?|t2)"),
    ("kohya", "OFT", "factor", r"\.(?:oft_blocks|oft_diag)"),
    ("peft", "OFT", "factor", r"\.oft_R(?:\.[^.]+)*"),
)
"""Dialect, method, part and how a name ends; a dialect of "" is told by the other names."""

_END = re.compile("|".join(f"(?P<e{number}>{end[3]})$" for number, end in enumerate(_ENDS)))
_LONGEST_END = 64

_PREFIXES: tuple[tuple[str, str, str], ...] = (
    ("base_model.model.", "peft", ""),
    ("model.diffusion_model.", "comfyui", DENOISER),
    ("diffusion_model.", "comfyui", DENOISER),
    ("unet.", "diffusers", DENOISER),
    ("transformer.", "diffusers", DENOISER),
    ("text_encoder_3.", "diffusers", "text_encoder_3"),
    ("text_encoder_2.", "diffusers", "text_encoder_2"),
    ("text_encoder.", "diffusers", "text_encoder"),
    ("text_encoders.clip_l.transformer.", "comfyui", "text_encoder"),
    ("text_encoders.clip_g.transformer.", "comfyui", "text_encoder_2"),
    ("text_encoders.t5xxl.transformer.", "comfyui", "text_encoder_3"),
)
"""What dotted names begin with, the dialect that writes it, and the network that it means."""

_FLAT_PREFIXES: tuple[tuple[str, str], ...] = (
    ("lora_unet_", DENOISER),
    ("lora_transformer_", DENOISER),
    ("lycoris_", DENOISER),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te3_", "text_encoder_3"),
    ("lora_te_", "text_encoder"),
)

_PROCESSORS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""What the first versions of diffusers called the modules of a text encoder, and transformers calls them."""


@dataclass(frozen=True)
class LoraKey:
    """What one name of a LoRA file says.

    Attributes:
        dialect: whose way of writing it is; "" where many write so.
        method: "LoRA", "DoRA", "LoHa", ...
        component: "denoiser", "text_encoder", "text_encoder_2", ...; "" where the name does not say.
        module: dotted, or flat.
        is_flat: whether the module has `_` for every dot.
        part: "down", "up", "alpha", "magnitude", "up_bias", or "factor" and "core" of other methods.
    """

    dialect: str
    method: str
    component: str
    module: str
    is_flat: bool
    part: str


def parse_lora_key(name: str) -> LoraKey | None:
    """Take a name apart; None if it is no adapter's.

    >>> parse_lora_key("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha").module
    'text_model_encoder_layers_0_mlp_fc1'
    >>> key = parse_lora_key("unet.mid_block.attentions.0.proj_in.lora.down.weight")
    >>> key.dialect, key.component, key.module, key.part
    ('diffusers', 'denoiser', 'mid_block.attentions.0.proj_in', 'down')
    """
    found = _END.search(name, max(len(name) - _LONGEST_END, 0))
    if found is None:
        return None
    dialect, method, part, _ = _ENDS[int(str(found.lastgroup)[1:])]
    module = name.rsplit(".", 2)[0] if dialect == "xlabs" else name[: found.start()]
    if "." not in module:
        for prefix, component in _FLAT_PREFIXES:
            if module.startswith(prefix):
                return LoraKey("kohya", method, component, module[len(prefix) :], True, part)
    component = ""
    for prefix, owner, meant in _PREFIXES:
        if module.startswith(prefix):
            module, component = module[len(prefix) :], meant or component
            dialect = owner if dialect in ("peft", "") else dialect
    if found[0].startswith("_lora."):
        module = _without_processor(module, component)
    return LoraKey(dialect, method, component, module, False, part)


def names_in_networks(module: str) -> tuple[str, str]:
    """Return what a dotted module may be called in a network: some begin all names as LoRA files do.

    >>> names_in_networks("layers.0.attention.dense")
    ('layers.0.attention.dense', 'transformer.layers.0.attention.dense')
    """
    return module, f"transformer.{module}"


def kohya_names(module: str, component: str = DENOISER) -> dict[str, str]:
    """Return what kohya's tools call the matrices and the alpha of a module's LoRA, by part.

    >>> kohya_names("mid_block.proj_in")["down"]
    'lora_unet_mid_block_proj_in.lora_down.weight'
    """
    prefix = next(prefix for prefix, meant in _FLAT_PREFIXES if meant == component)
    return {part: prefix + module.replace(".", "_") + end for part, end in _KOHYA_ENDS.items()}


def _without_processor(module: str, component: str) -> str:
    """Undo how the first versions of diffusers named attention: `attn1.processor.to_q_lora`."""
    block, _, leaf = module.replace(".processor.", ".").rpartition(".")
    if component.startswith("text_encoder"):
        return f"{block}.{_PROCESSORS.get(leaf, leaf)}"
    return f"{block}.{leaf}.0" if leaf == "to_out" else f"{block}.{leaf}"


@dataclass(frozen=True)
class LoraContent:
    """A LoRA file's names, sorted.

    Attributes:
        methods: "LoRA" and what else there is.
        keys: name -> what it says.
        rest: names that are no adapter's.
    """

    dialect: str
    methods: tuple[str, ...]
    keys: Mapping[str, LoraKey]
    rest: tuple[str, ...] = ()

    @cached_property
    def modules(self) -> Mapping[tuple[str, str], LoraModule]:
        """The modules by component and name."""
        found: dict[tuple[str, str], dict[str, str]] = {}
        flat = set()
        for name, key in self.keys.items():
            found.setdefault((key.component, key.module), {})[key.part] = name
            if key.is_flat:
                flat.add((key.component, key.module))
        return {place: LoraModule(*place, place in flat, names) for place, names in found.items()}


@dataclass(frozen=True)
class LoraModule:
    """A module that a LoRA changes.

    Attributes:
        names: part -> the file's name of it.
    """

    component: str
    module: str
    is_flat: bool
    names: Mapping[str, str] = field(default_factory=dict)


def sort_lora(names: Iterable[str]) -> LoraContent | None:
    """Sort a file's names; None if it holds no adapter, or is a network that holds some among its own tensors."""
    names = list(names)
    if not may_hold_adapters(names):
        return None
    keys = {name: key for name in names if (key := parse_lora_key(name)) is not None}
    methods = Counter(key.method for key in keys.values() if key.part != "alpha")
    rest = tuple(name for name in names if name not in keys)
    if not methods or len(rest) > len(keys):
        return None
    return LoraContent(_dialect(keys, rest), tuple(methods), keys, rest)


def _dialect(keys: Mapping[str, LoraKey], rest: tuple[str, ...]) -> str:
    """Whose way of writing most names are; with whole norms beside, it is Black Forest Labs' own."""
    counts = Counter(key.dialect for key in keys.values() if key.dialect)
    dialect = counts.most_common(1)[0][0]
    if dialect == "peft" and rest and all(name.endswith(".scale") for name in rest):
        return "bfl"
    return dialect
