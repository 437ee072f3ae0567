"""A diffusers pipeline of each family, its networks real and without data, and how it draws its latents."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import diffusers
import torch

from lading.catalog import known_families
from lading.catalog.construction import build_on_meta
from lading.latents import LatentFormat, LatentNumbers, LatentShape, make_latent_format
from tests.catalog.networks import shallow

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A pipeline and its networks.

    Attributes:
        pipeline: its class in diffusers.
        denoiser: class in diffusers, and config.
        autoencoder: class in diffusers, and config; what it leaves out is the class's default.
        channels: what the pipeline's `__call__` asks `prepare_latents` for.
        name: what the pipeline calls its denoiser.
        arguments: of `prepare_latents`, beside the usual ones.
        patches: the denoiser's own tokens of a latent, counted.
        checked: of `check_inputs`, beside the usual ones.
    """

    pipeline: str
    denoiser: tuple[str, Config]
    autoencoder: tuple[str, Config]
    channels: Callable[[Any], int] = lambda pipeline: pipeline.transformer.config.in_channels
    name: str = "transformer"
    arguments: Mapping[str, Callable[[Any, int | None], Any]] = field(default_factory=dict)
    patches: Callable[[Any, LatentShape], int] | None = None
    checked: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """A pipeline with its networks on the meta device, and lading's format of their configs."""

    pipeline: Any
    format: LatentFormat
    case: Case

    def draw(self, batch: int, height: int, width: int, num_frames: int | None) -> torch.Tensor:
        """Call `prepare_latents` as the pipeline's `__call__` does."""
        usual = {
            "batch_size": batch,
            "num_channels_latents": self.case.channels(self.pipeline),
            "num_latents_channels": self.case.channels(self.pipeline),
            "height": height,
            "width": width,
            "num_frames": num_frames,
            "dtype": torch.float16,
            "device": torch.device("cpu"),
            "generator": torch.Generator(),
        }
        usual |= {name: value(self.pipeline, num_frames) for name, value in self.case.arguments.items()}
        if self.case.pipeline == "Ideogram4Pipeline":
            cell = self.pipeline.vae_scale_factor * self.pipeline.patch_size
            usual |= {"num_image_tokens": height // cell * (width // cell), "latent_dim": usual["num_channels_latents"]}
        takes = inspect.signature(self.pipeline.prepare_latents).parameters
        drawn = self.pipeline.prepare_latents(**{name: value for name, value in usual.items() if name in takes})
        latents = drawn[0] if isinstance(drawn, tuple) else drawn  # some give positions beside it
        assert isinstance(latents, torch.Tensor)
        return latents

    def refuses(self, height: int, width: int) -> bool:
        """Tell whether the pipeline's own check of its arguments refuses a size."""
        if not hasattr(self.pipeline, "check_inputs"):
            return False
        given: dict[str, Any] = {"prompt": "a", "height": height, "width": width, "num_inference_steps": 1}
        given |= {"guidance_scale": 1.0, "strength": 1.0, "stg_scale": 0.0, "audio_stg_scale": 0.0}
        given |= self.case.checked
        arguments = {
            name: given.get(name)
            for name, parameter in inspect.signature(self.pipeline.check_inputs).parameters.items()
            if name in given or parameter.default is parameter.empty
        }
        try:
            self.pipeline.check_inputs(**arguments)
        except ValueError as error:
            assert "height" in str(error), error
            return True
        return False


def published(model_class: str, name: str) -> dict[str, Any]:
    """A published config that the catalog knows, at most two layers deep."""
    for family in known_families():
        for architecture in family.architectures:
            if architecture.model_class == f"diffusers.{model_class}" and name in architecture.published:
                return shallow(dict(architecture.published[name]))
    raise LookupError(f"{model_class} {name}")


def numbers_of(model_class: str) -> LatentNumbers:
    """What the family of a denoiser states."""
    found = (a.latent for f in known_families() for a in f.architectures if a.model_class == f"diffusers.{model_class}")
    return next(latent for latent in found if latent is not None)


def known(model_class: str, name: str, **changes: Any) -> tuple[str, Config]:
    """A class with a published config, some of it changed."""
    return model_class, {**published(model_class, name), **changes}


def _quarter(pipeline: Any) -> int:
    """Squares of four latents are the channels of a token."""
    return int(pipeline.transformer.config.in_channels) // 4


def _embedded(name: str) -> Callable[[Any, LatentShape], int]:
    """Tokens that the denoiser's first layer makes of a latent."""

    def count(denoiser: Any, shape: LatentShape) -> int:
        sizes = {**shape.sizes, "channels": denoiser.config.in_channels}
        made = getattr(denoiser, name)(torch.empty(tuple(sizes.values()), device="meta"))
        return int(made.flatten(2).shape[2] if made.ndim == 5 else made.shape[1])

    return count


def _film_embedded(denoiser: Any, shape: LatentShape) -> int:
    """CogVideoX: the text stands before the film."""
    sizes = {**shape.sizes, "channels": denoiser.config.in_channels}
    text = torch.empty((shape.sizes["batch"], 3, denoiser.config.text_embed_dim), device="meta")
    return int(denoiser.patch_embed(text, torch.empty(tuple(sizes.values()), device="meta")).shape[1]) - 3


def _frames_embedded(denoiser: Any, shape: LatentShape) -> int:
    """Mochi: frame by frame."""
    batch, channels, frames, height, width = shape.shape
    made = denoiser.patch_embed(torch.empty((batch * frames, channels, height, width), device="meta"))
    return int(made.shape[1]) * frames


def _padded(denoiser: Any, shape: LatentShape) -> int:
    """Z-Image: with what fills the last 32."""
    latent = torch.empty((shape.sizes["channels"], 1, shape.sizes["height"], shape.sizes["width"]))
    made = denoiser.patchify_and_embed([latent], [torch.empty((4, 8))], 2, 1)
    return int(made[0][0].shape[0])


_SD_VAE = known("AutoencoderKL", "stable-diffusion-v1-5/stable-diffusion-v1-5")
_VAE = known("AutoencoderKL", "black-forest-labs/FLUX.1-dev")
_VAE_3 = known(
    "AutoencoderKL",
    "black-forest-labs/FLUX.1-dev",
    block_out_channels=(32, 64, 64),
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
)
_FLUX2_VAE = known("AutoencoderKLFlux2", "black-forest-labs/FLUX.2-dev")
_QWEN_VAE = known("AutoencoderKLQwenImage", "Qwen/Qwen-Image")
_WAN_VAE = known("AutoencoderKLWan", "Wan-AI/Wan2.1-T2V-14B")
_WAN_VAE_2_2 = known("AutoencoderKLWan", "Wan-AI/Wan2.2-TI2V-5B")
_LTX2_VAE = ("AutoencoderKLLTX2Video", {"spatial_compression_ratio": 32, "temporal_compression_ratio": 8})
_COG_VAE = known("AutoencoderKLCogVideoX", "zai-org/CogVideoX-5b")
_HUNYUAN = ("HunyuanVideoTransformer3DModel", "hunyuanvideo-community/HunyuanVideo")
_HUNYUAN_VAE = known("AutoencoderKLHunyuanVideo", "hunyuanvideo-community/HunyuanVideo")
_LTX = known("LTXVideoTransformer3DModel", "Lightricks/LTX-Video")
_FLUX = known("FluxTransformer2DModel", "black-forest-labs/FLUX.1-dev")
_SD3 = ("SD3Transformer2DModel", "stabilityai/stable-diffusion-3.5-medium")
_SANA = known("SanaTransformer2DModel", "Efficient-Large-Model/Sana_600M_1024px_diffusers")
_Z_IMAGE = known("ZImageTransformer2DModel", "Tongyi-MAI/Z-Image-Turbo")
_QWEN_LAYERED = known("QwenImageTransformer2DModel", "Qwen/Qwen-Image-Layered")
_LAYERS: dict[str, Callable[[Any, int | None], Any]] = {
    "image": lambda _pipeline, _pictures: None,
    "layers": lambda _pipeline, pictures: (pictures or 1) - 1,
}


def _unet(name: str) -> tuple[str, Config]:
    return known("UNet2DConditionModel", name)


def _cog_frames(pipeline: Any, num_frames: int | None) -> int:
    """As `CogVideoXPipeline.__call__` fills the last token."""
    assert num_frames is not None
    patch, period = pipeline.transformer.config.patch_size_t or 1, int(pipeline.vae_scale_factor_temporal)
    latents = (num_frames - 1) // period + 1
    return num_frames + (-latents % patch) * period


def _cog(name: str) -> Case:
    denoiser = known("CogVideoXTransformer3DModel", name)
    arguments: dict[str, Callable[[Any, int | None], Any]] = {"num_frames": _cog_frames}
    return Case("CogVideoXPipeline", denoiser, _COG_VAE, arguments=arguments, patches=_film_embedded)


def _wan(name: str, autoencoder: tuple[str, Config]) -> Case:
    return Case("WanPipeline", known("WanTransformer3DModel", name), autoencoder, patches=_embedded("patch_embedding"))


CASES = {
    "Stable Diffusion 1.5": Case(
        "StableDiffusionPipeline",
        _unet("stable-diffusion-v1-5/stable-diffusion-v1-5"),
        _SD_VAE,
        channels=lambda pipeline: pipeline.unet.config.in_channels,
        name="unet",
    ),
    "Stable Diffusion 1.5, inpainting": Case(
        "StableDiffusionInpaintPipeline",
        _unet("stable-diffusion-v1-5/stable-diffusion-inpainting"),
        _SD_VAE,
        channels=lambda pipeline: pipeline.vae.config.latent_channels,
        name="unet",
    ),
    "SDXL": Case(
        "StableDiffusionXLPipeline",
        _unet("stabilityai/stable-diffusion-xl-base-1.0"),
        _SD_VAE,
        channels=lambda pipeline: pipeline.unet.config.in_channels,
        name="unet",
    ),
    "SD3": Case("StableDiffusion3Pipeline", known(*_SD3), _VAE, patches=_embedded("pos_embed")),
    "SD3, patches of 4": Case(
        "StableDiffusion3Pipeline", known(*_SD3, patch_size=4), _VAE, patches=_embedded("pos_embed")
    ),
    "FLUX.1": Case("FluxPipeline", _FLUX, _VAE, channels=_quarter),
    "FLUX.1, an autoencoder of three levels": Case("FluxPipeline", _FLUX, _VAE_3, channels=_quarter),
    "FLUX.1 Canny": Case(
        "FluxControlPipeline",
        known("FluxTransformer2DModel", "black-forest-labs/FLUX.1-Canny-dev"),
        _VAE,
        channels=lambda pipeline: pipeline.transformer.config.in_channels // 8,
    ),
    "FLUX.2": Case(
        "Flux2Pipeline",
        known("Flux2Transformer2DModel", "black-forest-labs/FLUX.2-dev"),
        _FLUX2_VAE,
        channels=_quarter,
    ),
    "FLUX.2 klein": Case(
        "Flux2KleinPipeline",
        known("Flux2Transformer2DModel", "black-forest-labs/FLUX.2-klein-4B"),
        _FLUX2_VAE,
        channels=_quarter,
    ),
    "Qwen-Image": Case(
        "QwenImagePipeline",
        known("QwenImageTransformer2DModel", "Qwen/Qwen-Image"),
        _QWEN_VAE,
        channels=_quarter,
    ),
    "Qwen-Image Layered": Case(
        "QwenImageLayeredPipeline", _QWEN_LAYERED, _QWEN_VAE, channels=_quarter, arguments=_LAYERS
    ),
    "Krea 2": Case("Krea2Pipeline", known("Krea2Transformer2DModel", "krea/Krea-2-Raw"), _QWEN_VAE, channels=_quarter),
    "Ideogram 4": Case("Ideogram4Pipeline", known("Ideogram4Transformer2DModel", "ideogram-ai/ideogram-4"), _FLUX2_VAE),
    "Z-Image": Case("ZImagePipeline", _Z_IMAGE, _VAE, patches=_padded),
    "Sana": Case(
        "SanaPipeline",
        _SANA,
        ("AutoencoderDC", {}),
        channels=lambda pipeline: pipeline.transformer.config.in_channels,
        patches=_embedded("patch_embed"),
    ),
    "Wan 2.1": _wan("Wan-AI/Wan2.1-T2V-14B", _WAN_VAE),
    "Wan 2.2, 5B": _wan("Wan-AI/Wan2.2-TI2V-5B", _WAN_VAE_2_2),
    "Wan 2.1 VACE": Case(
        "WanVACEPipeline",
        known("WanVACETransformer3DModel", "Wan-AI/Wan2.1-VACE-14B"),
        _WAN_VAE,
        patches=_embedded("patch_embedding"),
    ),
    "Wan 2.2 Animate": Case(
        "WanAnimatePipeline",
        known("WanAnimateTransformer3DModel", "Wan-AI/Wan2.2-Animate-14B"),
        _WAN_VAE,
        channels=lambda pipeline: pipeline.vae.config.z_dim,
        patches=_embedded("patch_embedding"),
        checked={"image": torch.empty(1), "pose_video": [None], "face_video": [None]},
    ),
    "LTX-Video": Case("LTXPipeline", _LTX, ("AutoencoderKLLTXVideo", {})),
    "LTX-Video, an autoencoder that halves once more": Case(
        "LTXPipeline", _LTX, ("AutoencoderKLLTXVideo", {"spatio_temporal_scaling": (True,) * 4})
    ),
    "LTX-2": Case("LTX2Pipeline", known("LTX2VideoTransformer3DModel", "Lightricks/LTX-2"), _LTX2_VAE),
    "HunyuanVideo": Case("HunyuanVideoPipeline", known(*_HUNYUAN), _HUNYUAN_VAE, patches=_embedded("x_embedder")),
    "CogVideoX": _cog("zai-org/CogVideoX-5b"),
    "CogVideoX 1.5": _cog("zai-org/CogVideoX1.5-5B"),
    "Mochi": Case(
        "MochiPipeline",
        known("MochiTransformer3DModel", "genmo/mochi-1-preview"),
        ("AutoencoderKLMochi", {}),
        patches=_frames_embedded,
    ),
}
"""A model of every family whose pipeline draws latents in `prepare_latents`."""


@cache
def build(name: str) -> Built:
    """Build a case's networks, its pipeline, and the format of their configs."""
    case = CASES[name]
    denoiser = build_on_meta(f"diffusers.{case.denoiser[0]}", case.denoiser[1])
    vae = build_on_meta(f"diffusers.{case.autoencoder[0]}", case.autoencoder[1])
    parts: dict[str, Any] = {case.name: denoiser, "vae": vae, "scheduler": _scheduler(case)}
    if case.pipeline == "LTX2Pipeline":
        parts["audio_vae"] = build_on_meta("diffusers.AutoencoderKLLTX2Audio", {})
    pipeline_class = getattr(diffusers, case.pipeline)
    parameters = inspect.signature(pipeline_class.__init__).parameters
    required = [key for key, value in parameters.items() if key != "self" and value.default is value.empty]
    options = {"requires_safety_checker": False} if "requires_safety_checker" in parameters else {}
    pipeline = pipeline_class(**dict.fromkeys(required) | parts | options)
    numbers = numbers_of(case.denoiser[0])
    audio = parts["audio_vae"].config if "audio_vae" in parts else None
    return Built(pipeline, make_latent_format(numbers, config_of(denoiser), config_of(vae), audio), case)


def config_of(network: torch.nn.Module) -> dict[str, Any]:
    """The whole config, as it stands in a repository."""
    return dict(network.config)  # type: ignore[arg-type] # every diffusers class has one, which torch does not know


def _scheduler(case: Case) -> Any:
    if case.name == "unet" or case.pipeline == "CogVideoXPipeline":
        return diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)
    return diffusers.FlowMatchEulerDiscreteScheduler()
