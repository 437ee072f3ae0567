"""From the names in a file to those of the networks in it: parts, wrapping prefixes and what quantisation adds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
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

_COMPANIONS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("bitsandbytes 4-bit", re.compile(r".+\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)")),
    ("bitsandbytes 8-bit", re.compile(r".+\.(?:SCB|weight_format)")),
    ("torchao", re.compile(r".+_weight_(?:qdata|scale|zero_point)")),
    ("quanto", re.compile(r".+\.weight\.(?:_data|_scale|_shift)|.+\.(?:input_scale|output_scale)")),
    ("scaled fp8 or int8", re.compile(r"(?:.+\.)?(?:scaled_fp8|scale_weight|scale_input|weight_scale|input_scale)")),
    ("scaled fp8 or int8", re.compile(r"(?:.+\.)?(?:comfy_quant|weight_scale_2)")),
)

_ANY_COMPANION = re.compile("|".join(pattern.pattern for _, pattern in _COMPANIONS))


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
    if name.endswith((".weight", ".bias")) or _ANY_COMPANION.fullmatch(name) is None:
        return None
    return next(scheme for scheme, pattern in _COMPANIONS if pattern.fullmatch(name))


def divide(whole: Shapes, containers: tuple[str, ...] = ()) -> list[Part]:
    """Return the parts of a file by the prefixes that usual repackagings use, the largest first.

    A file of one network is one part.

    Args:
        containers: prefixes of tensors that the file itself keeps apart.
    """
    groups: dict[str, dict[str, Shape]] = {}
    containers = containers if len(containers) <= _MOST_CONTAINERS else ()
    for name, shape in whole.items():
        container = max((one for one in containers if name.startswith(one)), key=len, default="")
        match = _PARTS.match(name, len(container))
        prefix = name[: match.end()] if match is not None else container
        groups.setdefault(prefix, {})[name[len(prefix) :]] = shape
    parts = [Part(prefix, Shapes(shapes)) for prefix, shapes in groups.items()]
    return sorted(parts, key=lambda part: part.elements, reverse=True)


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
