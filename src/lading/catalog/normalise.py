"""From the names in a file to those of the networks in it: parts, wrapping prefixes and what quantisation adds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

from lading.catalog.change import Shape
from lading.catalog.shapes import Shapes

WRAPPERS = (
    "model.diffusion_model.",
    "diffusion_model.",
    "state_dict.",
    "model_state.",
    "module.",
    "model.",
    "model_ema.",
    "ema.",
    "net.",
    "transformer.",
    "unet.",
    "vae.",
)
"""What trainers and repackagers put before every name of one network."""

_MOST_WRAPPERS = 4
_MOST_CONTAINERS = 32
"""Of a file; where there are more, it nests the tensors of one network, layer by layer."""

_PARTS = re.compile(
    r"model\.diffusion_model\.|diffusion_model\.|control_model\.|first_stage_model\.|audio_vae\.|vae\.|vocoder\.|text_embedding_projection\."
    r"|cond_stage_model\.(?:transformer\.|model\.)?|conditioner\.embedders\.[0-9]+\.(?:transformer\.|model\.)?"
    r"|text_encoders\.[^.]+\.(?:transformer\.)?|text_encoder(?:_[0-9])?\.|transformer\.|unet\."
)
"""Prefixes by which one file holds several networks."""

_COMPANIONS: tuple[tuple[str, str], ...] = (
    ("bitsandbytes 4-bit", r".+\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)"),
    ("bitsandbytes 8-bit", r".+\.(?:SCB|weight_format)"),
    ("torchao", r".+_weight_(?:qdata|scale|zero_point)"),
    ("quanto", r".+\.weight\.(?:_data|_scale|_shift)|.+\.(?:input_scale|output_scale)"),
    ("scaled fp8 or int8", r"(?:.+\.)?(?:scaled_fp8|scale_weight|scale_input|weight_scale|input_scale)"),
    ("scaled fp8 or int8", r"(?:.+\.)?(?:comfy_quant|weight_scale_2)"),
)

_COMPANION = re.compile("|".join(f"(?P<c{number}>{names})" for number, (_, names) in enumerate(_COMPANIONS)))

_ADAPTER_MARKS = ("lora", "hada_w", "lokr_w", "oft_")
"""One of these is in some name of every adapter."""


@dataclass(frozen=True)
class Part:
    """The tensors of one network in a file.

    Attributes:
        prefix: what stands before each of its names in the file.
        shapes: by name without the prefix.
    """

    prefix: str
    shapes: Shapes

    @property
    def elements(self) -> int:
        """Of all tensors."""
        return sum(prod(shape) for shape in self.shapes.values())


@dataclass(frozen=True)
class Content:
    """A file's tensors, sorted.

    Attributes:
        whole: all that are a network's.
        companions: what quantisation added -> how many tensors.
    """

    whole: Shapes
    companions: Mapping[str, int]


def sort_content(shapes: Mapping[str, Shape]) -> Content:
    """Set aside what quantisation added to a file."""
    companions: dict[str, int] = {}
    kept: dict[str, Shape] = {}
    for name, shape in shapes.items():
        scheme = _scheme(name)
        if scheme is None:
            kept[name] = shape
        else:
            companions[scheme] = companions.get(scheme, 0) + 1
    return Content(Shapes(kept), companions)


def _scheme(name: str) -> str | None:
    if name.endswith((".weight", ".bias")):
        return None
    found = _COMPANION.fullmatch(name)
    return None if found is None else _COMPANIONS[int(str(found.lastgroup)[1:])][0]


def may_hold_adapters(names: Iterable[str]) -> bool:
    """Whether names are such as a LoRA or its kin has among its own."""
    return any(mark in name for name in names for mark in _ADAPTER_MARKS)


def divide(whole: Shapes, containers: tuple[str, ...] = ()) -> list[Part]:
    """Return the parts of a file by the prefixes that usual repackagings use, the largest first.

    A file of one network is one part.

    Args:
        containers: prefixes of tensors that the file itself keeps apart.
    """
    groups: dict[str, dict[str, Shape]] = {}
    containers = containers if len(containers) <= _MOST_CONTAINERS else ()
    for name, shape in whole.items():
        container = max((one for one in containers if name.startswith(one)), key=len, default="") if containers else ""
        match = _PARTS.match(name, len(container))
        prefix = name[: match.end()] if match is not None else container
        groups.setdefault(prefix, {})[name[len(prefix) :]] = shape
    parts = [Part(prefix, Shapes(shapes)) for prefix, shapes in groups.items()]
    return sorted(parts, key=lambda part: part.elements, reverse=True) if len(parts) > 1 else parts


def unwrap(part: Part) -> Iterator[Part]:
    """Yield a part as it is, then without each prefix that all of its names share, one after the other."""
    yield part
    for _ in range(_MOST_WRAPPERS):
        wrapper = next((one for one in WRAPPERS if all(name.startswith(one) for name in part.shapes)), None)
        if wrapper is None or not part.shapes:
            return
        part = Part(part.prefix + wrapper, part.shapes.under(wrapper))
        yield part


def without_shared_prefix(part: Part) -> Iterator[Part]:
    """Yield a part without the first words that all of its names share, one after the other, whatever they are."""
    for _ in range(_MOST_WRAPPERS):
        words = {name.partition(".")[0] for name in part.shapes}
        if len(words) != 1 or any("." not in name for name in part.shapes):
            return
        prefix = f"{words.pop()}."
        part = Part(part.prefix + prefix, part.shapes.under(prefix))
        yield part
