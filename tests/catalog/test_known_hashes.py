"""Published files of which only the hash is known: the key maps make exactly their names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import pytest

from lading.catalog import find_architecture, known_models
from lading.catalog.construction import build_on_meta, network_shapes, verify
from lading.catalog.families._ltx_layouts import STATISTICS
from lading.catalog.recognition import identify_tensors

Shapes = dict[str, tuple[int, ...]]

LTX2, LTX2_3 = "Lightricks/LTX-2", "Lightricks/LTX-2.3"
FILMS, SOUND = "diffusers.AutoencoderKLLTX2Video", "diffusers.AutoencoderKLLTX2Audio"
VOCODER, WIDE_VOCODER = "diffusers.pipelines.ltx2.LTX2Vocoder", "diffusers.pipelines.ltx2.LTX2VocoderWithBWE"
CONNECTORS, FILM_TRANSFORMER = "diffusers.pipelines.ltx2.LTX2TextConnectors", "diffusers.LTX2VideoTransformer3DModel"
PER_CHANNEL: Shapes = dict.fromkeys(STATISTICS, (128,))
BLURS: Shapes = {
    f"motion_encoder.enc.net_app.convs.{number}.{part}.0.kernel": (4, 4)
    for number in range(1, 8)
    for part in ("conv2", "skip")
}


@cache
def in_layout(family: str, name: str, published: str, layout: str = "original") -> Shapes:
    """A published network as it is named and shaped in a layout."""
    architecture = find_architecture(family, name)
    shapes = network_shapes(build_on_meta(name, architecture.published[published])).shapes
    key_map = architecture.key_map(layout, shapes)
    return dict(shapes) if key_map is None else key_map.inverse.shapes(shapes)


@dataclass(frozen=True)
class Case:
    """A file with one network.

    Attributes:
        prefix: before each name.
        only: what names begin with, where the file holds a part of the network.
        beside: what it holds beside the network.
    """

    digest: str
    family: str
    name: str
    published: str
    layout: str = "original"
    prefix: str = ""
    only: tuple[str, ...] = ("",)
    beside: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def shapes(self) -> Shapes:
        """All tensors of the file."""
        network = in_layout(self.family, self.name, self.published, self.layout)
        whole = {**{name: shape for name, shape in network.items() if name.startswith(self.only)}, **self.beside}
        return {self.prefix + name: shape for name, shape in whole.items()}


def half(name: str) -> tuple[str, ...]:
    return (f"{name}.", "per_channel_statistics.")


H3 = "MiniMax/MiniMax-H3"
ANIMATE = "Wan-AI/Wan2.2-Animate-14B"
CASES = {
    "Krea-2 : raw.safetensors": Case(
        "4be51f0ecc9b9dfc9825abb3f7a0b4ae",
        "krea2",
        "diffusers.Krea2Transformer2DModel",
        "krea/Krea-2-Raw",
        beside={"last.up.weight": (6144, 6144), "last.down.weight": (6144, 6144)},
    ),
    "Wan2.2-Animate-14B": Case(
        "31fa352acb8a1b1d33cd8764273d80a2", "wan", "diffusers.WanAnimateTransformer3DModel", ANIMATE, beside=BLURS
    ),
    "MiniMax-H3 : video_vae": Case(
        "24b80900992e2024fab17c991c57da23",
        "minimax",
        "diffusers.AutoencoderKLMiniMaxH3",
        H3,
        beside={"decoder.mask_token": (1, 1, 2048)},
    ),
    "MiniMax-H3 : audio_vae": Case(
        "db383f1c8960837b94059f7722e6cb11", "minimax", "diffusers.AutoencoderKLMiniMaxH3Audio", H3, "diffusers"
    ),
    "LTX-2 : vocoder": Case("f471360f6b24bef702ab73133d9f8bb9", "ltx", VOCODER, LTX2, prefix="vocoder."),
    "LTX-2.3 : vocoder": Case("cd436c99e69ec5c80f050f0944f02a15", "ltx", WIDE_VOCODER, LTX2_3, prefix="vocoder."),
    "LTX-2 : connectors": Case("981629689c8be92a712ab3c5eb4fc3f6", "ltx", CONNECTORS, LTX2),
    "LTX-2.3 : connectors": Case("05da2aab1c4b061f72c426311c165a43", "ltx", CONNECTORS, LTX2_3),
}
HALVES = {
    "LTX-2 : films to latents": Case(
        "7f7e904a53260ec0351b05f32153754b", "ltx", FILMS, LTX2, "original", "vae.", half("encoder"), PER_CHANNEL
    ),
    "LTX-2 : latents to films": Case(
        "dc6029ca2825147872b45e35a2dc3a97", "ltx", FILMS, LTX2, "original", "vae.", half("decoder"), PER_CHANNEL
    ),
    "LTX-2.3 : films to latents": Case(
        "eecdc07c2ec30863b8a2b8b2134036cf", "ltx", FILMS, LTX2_3, "original", "vae.", half("encoder")
    ),
    "LTX-2.3 : latents to films": Case(
        "deda2f542e17ee25bc8c38fd605316ea", "ltx", FILMS, LTX2_3, "original", "vae.", half("decoder")
    ),
    "LTX-2 : sound to latents": Case(
        "29338f3b95e7e312a3460a482e4f4554", "ltx", SOUND, LTX2, "original", "audio_vae.", half("encoder")
    ),
    "LTX-2 : latents to sound": Case(
        "7d7823dde8f1ea0b50fb07ac329dd4cb", "ltx", SOUND, LTX2, "original", "audio_vae.", half("decoder")
    ),
}


@pytest.mark.parametrize("label", CASES)
def test_a_file_known_by_its_hash_is_told_and_rebuilt(label: str) -> None:
    case = CASES[label]
    found = identify_tensors(case.shapes())
    assert found.hash == case.digest
    assert found.known is known_models()[case.digest]
    best = found.best
    assert best is not None
    assert (best.model_class, best.layout, best.match) == (case.name, case.layout, "hash")
    assert best.prefix == case.prefix
    architecture = find_architecture(case.family, case.name)
    tensors = {name.removeprefix(case.prefix): shape for name, shape in case.shapes().items()}
    assert verify(architecture, best.config, best.layout, tensors) == []


@pytest.mark.parametrize("label", HALVES)
def test_half_a_network_is_called_by_its_name_and_told_to_be_a_half(label: str) -> None:
    case = HALVES[label]
    found = identify_tensors(case.shapes())
    assert found.hash == case.digest
    assert case.name in [candidate.model_class for candidate in found.candidates]
    other = "decoder" if "encoder." in case.only else "encoder"
    assert any("tensors are missing" in problem and other in problem for problem in found.problems)


@pytest.mark.parametrize(
    ("digest", "model", "vocoder", "statistics"),
    [
        ("aca7b0bbf8415e9c98360750268915fc", LTX2, VOCODER, PER_CHANNEL),
        ("f3a83ecf3995dcc4fae2d27e08ad5767", LTX2_3, WIDE_VOCODER, {}),
    ],
)
def test_the_networks_of_a_whole_ltx_2_are_told(
    digest: str, model: str, vocoder: str, statistics: Mapping[str, tuple[int, ...]]
) -> None:
    parts = {
        "model.diffusion_model.": in_layout("ltx", FILM_TRANSFORMER, model),
        "vae.": {**in_layout("ltx", FILMS, model), **statistics},
        "audio_vae.": in_layout("ltx", SOUND, model),
        "vocoder.": in_layout("ltx", vocoder, model),
        "": in_layout("ltx", CONNECTORS, model),
    }
    found = identify_tensors(
        {prefix + name: shape for prefix, shapes in parts.items() for name, shape in shapes.items()}
    )
    assert found.hash == digest
    classes = {candidate.prefix: candidate.model_class for candidate in found.candidates}
    assert classes == {
        "model.diffusion_model.": FILM_TRANSFORMER,
        "vae.": FILMS,
        "audio_vae.": SOUND,
        "vocoder.": vocoder,
    }
    assert not any("missing" in problem for problem in found.problems)
