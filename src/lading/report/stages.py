"""What becomes of a prompt in a model, stage by stage: sentences and shapes, from its configs. Plain Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from lading.catalog.architecture import Config
from lading.latents import LatentFormat, LatentShape
from lading.loading.blueprint import AUTOENCODERS, Blueprint

_PIXEL_CHANNELS = 3
_OPEN = "as many as the prompt has"


@dataclass(frozen=True)
class Extent:
    """What is made.

    Attributes:
        latent: of one picture or film.
    """

    latent: LatentShape
    height: int
    width: int
    num_frames: int | None

    @property
    def sizes(self) -> dict[str, int]:
        """By axis, in pixels."""
        frames = {} if self.num_frames is None else {"frames": self.num_frames}
        return {"batch": self.latent.sizes["batch"], **frames, "height": self.height, "width": self.width}

    def __str__(self) -> str:
        size = f"{self.height} x {self.width} pixels"
        return f"a picture of {size}" if self.num_frames is None else f"a film of {self.num_frames} frames of {size}"


@dataclass(frozen=True)
class Stage:
    """One stage of the way from words to pixels.

    Attributes:
        text: what happens, in a sentence or two.
        tensors: what comes out: name -> axis -> size, None where the prompt decides.
    """

    text: str
    tensors: Mapping[str, Mapping[str, int | None]]

    @property
    def shapes(self) -> list[str]:
        """A line for each tensor."""
        known = {
            name: {axis: _OPEN if size is None else size for axis, size in axes.items()}
            for name, axes in self.tensors.items()
        }
        return ["  ".join([name, *(f"{axis} {size}" for axis, size in axes.items())]) for name, axes in known.items()]


def stages(blueprint: Blueprint, latents: LatentFormat, extent: Extent, tokens: int | None) -> tuple[Stage, ...]:
    """Tell the way of one prompt.

    Args:
        tokens: that the tokenizer makes at most, where it is known.
    """
    found = [*_reading(blueprint, tokens), _noise(latents, extent), _denoising(blueprint, latents, extent)]
    if latents.audio is not None and extent.num_frames is not None:
        sound = latents.audio.shape(1, extent.num_frames).sizes
        text = "The sound of the film has a latent of its own, which is denoised beside the other."
        found.append(Stage(text, {"latent of the sound": dict(sound)}))
    return (*found, _decoding(blueprint, latents, extent))


def _reading(blueprint: Blueprint, tokens: int | None) -> Iterator[Stage]:
    encoders = {name: one.config for name, one in blueprint.networks.items() if name.startswith("text_encoder")}
    if not encoders:
        return
    words = _entry(next(iter(encoders.values())), "vocab_size")
    lasting = tokens or _positions(next(iter(encoders.values())))
    cut = "The tokenizer cuts the prompt into tokens: numbers in a vocabulary"
    cut += f" of {words:,} pieces of words" if words else ""
    cut += f", {lasting} of them, as it fills up short prompts." if lasting else "."
    yield Stage(cut, {"tokens": {"batch": 1, "tokens": lasting}})
    for name, config in encoders.items():
        width = _entry(config, "hidden_size", "d_model", "n_embd")
        depth = _entry(config, "num_hidden_layers", "num_layers", "n_layer")
        layers = f", {depth} layer{'s' if depth != 1 else ''} deep," if depth else ""
        numbers = f"{width} numbers" if width else "numbers"
        text = f"{name}{layers} turns each token into {numbers} that say what it means where it stands."
        own = _positions(config) or (tokens if name == "text_encoder" else None)
        yield Stage(text, {"embeddings": {"batch": 1, "tokens": own, **({"features": width} if width else {})}})


def _noise(latents: LatentFormat, extent: Extent) -> Stage:
    shape, made = extent.latent, "picture" if extent.num_frames is None else "film"
    pixels = prod((_PIXEL_CHANNELS, extent.height, extent.width, extent.num_frames or 1))
    place = f"{latents.spatial} x {latents.spatial} pixels"
    if latents.frames is not None and latents.frames.period > 1:
        place += f" of {latents.frames.period} frames"
    fewer = pixels / len(shape)
    text = (
        f"Noise is drawn in the shape of the latent, which has {shape.sizes['channels']} numbers for each {place}: "
        f"{len(shape):,} numbers stand for the {pixels:,} of the {made}, {fewer:.3g} times fewer."
    )
    tensors: dict[str, Mapping[str, int | None]] = {"latent": dict(shape.sizes)}
    if shape.layout.packed:
        patch = " x ".join(str(size) for size in shape.patch.values() if size > 1)
        text += f" It is held as tokens{f' of {patch} places each' if patch else ''}."
        tensors["tokens of it"] = dict(zip(("batch", "tokens", "features"), shape.packed, strict=True))
    return Stage(text, tensors)


def _denoising(blueprint: Blueprint, latents: LatentFormat, extent: Extent) -> Stage:
    names = blueprint.denoisers
    config = blueprint.networks[names[0]].config
    scheduler = blueprint.settings.get("scheduler")
    taken = f"{scheduler[1]} takes" if isinstance(scheduler, list) and scheduler[-1] else "the scheduler takes"
    size = _size_of(config)
    text = (
        f"At every step {' or '.join(names)}{f' ({size})' if size else ''} is shown the latent, the embeddings and how "
        f"noisy it is by now, and tells the noise; {taken} some of it away."
    )
    if not extent.latent.layout.packed and extent.latent.patch != dict.fromkeys(extent.latent.patch, 1):
        patch = " x ".join(str(size) for size in extent.latent.patch.values() if size > 1)
        text += f" Inside, {patch} places make a token: {extent.latent.tokens:,} of them."
    guided = latents.guided(extent.latent)
    text += {
        "batch": " Guidance asks twice, with the prompt and with the negative one, in a batch of two.",
        "passes": " Guidance asks twice, with the prompt and with the negative one, one after the other.",
        "embedded": " How closely to follow the prompt is a number that it is told.",
        "none": "",
    }[latents.guidance]
    held = guided.packed if guided.layout.packed else None
    axes: Mapping[str, int | None] = (
        dict(guided.sizes) if held is None else dict(zip(("batch", "tokens", "features"), held, strict=True))
    )
    return Stage(text, {"what it is shown": axes})


def _decoding(blueprint: Blueprint, latents: LatentFormat, extent: Extent) -> Stage:
    name = next((name for name in AUTOENCODERS if name in blueprint.networks), "The autoencoder")
    sizes, factor = extent.latent.sizes, latents.spatial
    text = f"{name} turns the latent into pixels: each of its {sizes['height']} x {sizes['width']} places becomes "
    text += f"{factor} x {factor} pixels"
    if extent.num_frames is not None and "frames" in sizes:
        text += f", its {sizes['frames']} frames {extent.num_frames}"
    pixels = latents.pixels(extent.latent).sizes
    axes = {"batch": pixels["batch"], "channels": _PIXEL_CHANNELS, **{a: n for a, n in pixels.items() if a != "batch"}}
    return Stage(f"{text}.", {"pixels": axes})


def _size_of(config: Config) -> str:
    """How large a denoiser is, as far as its config says it in ways that many have."""
    channels = config.get("block_out_channels")
    if isinstance(channels, list | tuple) and channels:
        return f"{len(channels)} levels of {min(channels)} to {max(channels)} channels"
    depth = [_entry(config, "num_layers", "n_layers"), _entry(config, "num_single_layers")]
    blocks = " + ".join(str(count) for count in depth if count)
    heads, of_head = _entry(config, "num_attention_heads", "n_heads"), _entry(config, "attention_head_dim")
    width = _entry(config, "dim") or (heads * of_head if heads and of_head else None)
    said = [f"{blocks} blocks" if blocks else "", f"{width} wide" if width else ""]
    return ", ".join(words for words in said if words)


def _positions(config: Config) -> int | None:
    """How many tokens an encoder with learned positions takes: those of CLIP are always filled up."""
    most = _entry(config, "max_position_embeddings")
    return most if most is not None and most <= 256 else None


def _entry(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of several names that a config has; some keep those of their text in a config of its own."""
    for source in (config, config.get("text_config") or {}):
        for name in names:
            value = source.get(name) if isinstance(source, Mapping) else None
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None
