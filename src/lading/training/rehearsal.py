"""A pipeline that is run for what it says, not for what it draws.

Its denoiser and its autoencoder are stand-ins that compute nothing. The one notes how the pipeline calls its denoiser
for a caption, the other what reaches the decoder; so that training gives a denoiser exactly what drawing gives it,
whichever family it is of, and no family has a script of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch

from lading.errors import ComponentError
from lading.latents import AXES, LatentFormat, fold, unpack
from lading.loading.loaders import resolve_class
from lading.loading.network import construction
from lading.training.conditions import Conditions, Path, batch_paths
from lading.training.parts import PipelineParts
from lading.training.stand_ins import ASKED_TIMESTEPS, asked_scheduler, read_buffers, remembered, stand_in

TIMESTEP_RULES: dict[str, Callable[[Any, float], Any]] = {
    "number": lambda timestep, _last: timestep,
    "share": lambda timestep, last: timestep / last,
    "reversed share": lambda timestep, last: 1 - timestep / last,
}
"""What pipelines make of the scheduler's timestep before the denoiser sees it. `last` is the number of timesteps."""

_TIMESTEP_NAMES = ("timestep", "t", "timesteps")
"""What denoisers call it."""


@dataclass(frozen=True)
class Extent:
    """The size of an example, in pixels.

    Attributes:
        num_frames: of a film; None for pictures.
        original: height and width of the picture before it was made to fit; some denoisers are told.
        crop: how many of its pixels, after resizing, were cut off at the top and at the left; likewise.
    """

    height: int
    width: int
    num_frames: int | None = None
    original: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class DenoiserRules:
    """How a pipeline calls its denoiser, and how its latents lie to those of its autoencoder.

    Attributes:
        latents: the argument that takes the noisy latent.
        timestep: the argument that takes the timestep.
        timestep_rule: of `TIMESTEP_RULES`.
        negated: whether the pipeline turns the sign of what the denoiser predicts.
        listed: whether latents are given as a list, one to each example, each with an axis of one frame.
        batched: where conditions have their batch.
        scale: of the autoencoder's latent, channel by channel: its latent is `scale * denoiser's + shift`.
        shift: likewise.
    """

    latents: str
    timestep: str
    timestep_rule: str
    negated: bool
    listed: bool
    batched: frozenset[Path]
    scale: tuple[float, ...]
    shift: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """The rules for JSON."""
        return {**asdict(self), "batched": sorted(map(list, self.batched))}

    @staticmethod
    def from_json(content: dict[str, Any]) -> DenoiserRules:
        """The inverse of `to_json`."""
        batched = frozenset(tuple(path) for path in content["batched"])
        pair = {name: tuple(content[name]) for name in ("scale", "shift")}
        return DenoiserRules(**{**content, **pair, "batched": batched})


class _EnoughError(Exception):
    """Ends a rehearsal when it has said what was asked."""


OnCall: TypeAlias = "Callable[[dict[str, Any]], Any]"
"""Given the arguments of a call of the denoiser, returns what it predicts."""


class Rehearsal:
    """A pipeline whose denoiser and autoencoder are stand-ins.

    Args:
        components: the loaded encoders and the scheduler, by name.
        dtype: what the denoiser will compute in; pipelines cast what they give it.
        guidance_scale: for denoisers that are told it.
    """

    def __init__(
        self,
        parts: PipelineParts,
        components: Mapping[str, Any],
        dtype: torch.dtype,
        device: torch.device,
        guidance_scale: float = 1.0,
    ) -> None:
        self._parts = parts
        self._guidance = guidance_scale
        self._unguided = 1.0  # some pipelines guide at 1 too, and not at 0
        self._denoiser = stand_in(parts.denoiser, dtype, device)
        self._autoencoder = stand_in(parts.autoencoder, torch.float32, device)
        read_buffers(self._autoencoder, parts.autoencoder)
        with construction():
            self.pipeline = parts.pipeline_class.from_pretrained(
                str(parts.folder),
                **{
                    **components,
                    parts.denoiser.name: self._denoiser,
                    parts.autoencoder.name: self._autoencoder,
                    **dict.fromkeys(parts.unused),
                },
            )
        self.pipeline.set_progress_bar_config(disable=True)
        self._scheduler = self.pipeline.scheduler
        self._takes = inspect.signature(parts.pipeline_class.__call__).parameters
        forward = inspect.signature(resolve_class(parts.denoiser).forward)  # type: ignore[attr-defined] # a network
        self._names = [name for name in forward.parameters if name != "self"]
        self._latents = self._names[0]
        timestep = next((name for name in _TIMESTEP_NAMES if name in self._names), None)
        if timestep is None:
            raise self._refusal(f"its denoiser takes {', '.join(self._names)}, and none is the timestep")
        self._timestep = timestep

    def conditions(self, caption: str, extent: Extent, differentiable: bool = False) -> Conditions:
        """Return what the pipeline gives its denoiser for a caption, beside the latent and the timestep.

        Args:
            differentiable: whether gradients reach the text encoders.
        """
        arguments = self._first_call([caption], extent, differentiable)
        timestep = arguments.pop(self._timestep)
        del arguments[self._latents]
        shape = tuple(timestep.shape[1:]) if isinstance(timestep, torch.Tensor) else ()
        return Conditions(arguments, shape)

    def encodings(self, prompt: str, extent: Extent, guidance_scale: float | None) -> list[Any]:
        """Return what the pipeline's calls of `encode_prompt` give, in their order, when it draws a prompt."""
        encode = self.pipeline.encode_prompt
        given: list[Any] = []

        def note(*args: Any, **kwargs: Any) -> Any:
            given.append(encode(*args, **kwargs))
            return given[-1]

        def enough(_arguments: dict[str, Any]) -> Any:
            raise _EnoughError

        self.pipeline.encode_prompt = note
        try:
            self._run([prompt], extent, enough, guided=guidance_scale, unguided=False)
        finally:
            del self.pipeline.encode_prompt
        return given

    def rules(self) -> DenoiserRules:
        """Find out how the pipeline calls its denoiser.

        Raises:
            ComponentError: it does so in a way that training has no rule for.
        """
        latents = self._parts.latents
        frames = None if latents.frames is None else latents.frames.first + latents.frames.period
        extent = Extent(2 * latents.multiple, 4 * latents.multiple, frames)
        with remembered(self.pipeline, "encode_prompt"):
            one, two = (self._first_call([""] * batch, extent) for batch in (1, 2))
            given = one[self._latents]
            if len(given) != 1:
                raise self._refusal(f"its denoiser is called with a batch of {len(given)} for one caption")
            rule, negated = self._loop(extent)
            beside: list[Any] = [{**call, self._latents: None, self._timestep: None} for call in (one, two)]
            batched = batch_paths(beside[0], beside[1])
            scale, shift = self._decoding(extent)
        listed = isinstance(given, list)
        return DenoiserRules(self._latents, self._timestep, rule, negated, listed, batched, scale, shift)

    def _first_call(self, prompts: Sequence[str], extent: Extent, differentiable: bool = False) -> dict[str, Any]:
        """Return what the denoiser is called with first, for captions without guidance by a negative one."""
        calls: list[dict[str, Any]] = []

        def note(arguments: dict[str, Any]) -> Any:
            calls.append(arguments)
            raise _EnoughError

        self._run(prompts, extent, note, differentiable=differentiable)
        if len(calls[0][self._latents]) == 2 * len(prompts) and self._unguided:
            self._unguided = 0.0
            return self._first_call(prompts, extent, differentiable)
        return calls[0]

    def _loop(self, extent: Extent) -> tuple[str, bool]:
        """Tell how the timestep is given, and whether the prediction's sign is turned, from two steps."""
        seen: list[Any] = []
        outputs: list[torch.Tensor] = []

        def note(arguments: dict[str, Any]) -> Any:
            seen.append(arguments[self._timestep])
            if len(seen) == 2:
                raise _EnoughError
            given = arguments[self._latents]
            if isinstance(given, list):
                return [torch.full_like(latent, 0.5) for latent in given]
            return torch.full_like(given, 0.5)

        self._run([""], extent, note, on_step=outputs.append)
        last = float(self._scheduler.config.num_train_timesteps)
        values = [float(torch.as_tensor(value).flatten()[0]) for value in seen]
        rule = next((name for name in TIMESTEP_RULES if _follows(name, values, last)), None)
        if rule is None:
            raise self._refusal(f"it gives its denoiser {values} at the timesteps {list(ASKED_TIMESTEPS)}")
        (output,) = outputs
        for negated, value in ((False, 0.5), (True, -0.5)):
            if torch.equal(output, torch.full_like(output, value)):
                return rule, negated
        raise self._refusal("it changes what its denoiser predicts before the scheduler takes it")

    def _decoding(self, extent: Extent) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Tell how the autoencoder's latent follows from the denoiser's, from three latents that are decoded."""
        latents = self._parts.latents
        shape = latents.shape(1, extent.height, extent.width, extent.num_frames)
        # In quarters, which every dtype holds exactly: pipelines may cast what they are given.
        probe = torch.randint(-8, 9, shape.held, generator=torch.Generator().manual_seed(0)) / 4
        zero, one, other = (
            self._decoded(extent, latent) for latent in (torch.zeros(shape.held), torch.ones(shape.held), probe)
        )
        axis = shape.axes.index("channels")
        shift, scale = (latent.movedim(axis, 0).flatten(1)[:, 0] for latent in (zero, one - zero))
        whole = unpack(probe, shape) if shape.layout.packed else probe
        expected = whole * along_channels(scale, latents) + along_channels(shift, latents)
        if other.shape != expected.shape or not torch.allclose(other, expected, rtol=1e-4, atol=1e-4):
            raise self._refusal("what it decodes is not its latent, scaled and shifted channel by channel")
        return tuple(scale.tolist()), tuple(shift.tolist())

    def _decoded(self, extent: Extent, final: torch.Tensor) -> torch.Tensor:
        """Return what reaches the decoder when the last step ends in a latent, by the axes of the denoiser's latent."""
        decoded: list[torch.Tensor] = []

        def decode(latent: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
            decoded.append(latent)
            raise _EnoughError

        device = self._denoiser.device
        self._run([""], extent, lambda given: given[self._latents], lambda _output: final.to(device), decode)
        return by_axes_of(self._parts.latents, decoded[0].float().cpu())

    def _run(
        self,
        prompts: Sequence[str],
        extent: Extent,
        on_call: OnCall,
        on_step: Callable[[torch.Tensor], torch.Tensor | None] | None = None,
        on_decode: Callable[..., Any] | None = None,
        differentiable: bool = False,
        guided: float | None = None,
        unguided: bool = True,
    ) -> None:
        """Call the pipeline until a stand-in has had enough.

        Args:
            on_call: what the denoiser returns.
            on_step: given what the scheduler gets of the denoiser; returns the next latent, or None for the same.
            on_decode: the decoder.
            guided: the guidance scale, where it is not to be the one at which there is none; None is the pipeline's.
        """
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = dict(zip(self._names, args, strict=False)) | kwargs
            given.pop("return_dict", None)
            return Transformer2DModelOutput(sample=on_call(given))

        shape = self._parts.latents.shape(len(prompts), extent.height, extent.width, extent.num_frames)
        scale = self._unguided_scale() if unguided else guided
        arguments = self._arguments(prompts, extent, torch.zeros(shape.held), scale)
        call = type(self.pipeline).__call__
        if differentiable:
            call = inspect.unwrap(call)  # from under torch.no_grad
        self._denoiser.forward = forward
        self._autoencoder.decode = on_decode
        try:
            with asked_scheduler(self.pipeline, on_step):
                call(self.pipeline, **arguments)
        except _EnoughError:
            return
        except torch.OutOfMemoryError:
            raise
        except (ValueError, TypeError, AttributeError, RuntimeError, KeyError, NotImplementedError) as error:
            raise self._refusal(f"it cannot be run for its conditions ({error})") from error
        raise self._refusal("it did not call its denoiser")

    def _arguments(
        self, prompts: Sequence[str], extent: Extent, latents: torch.Tensor, guidance: float | None
    ) -> dict[str, Any]:
        """The arguments of the pipeline's call, as far as it takes them."""
        offered = {
            "prompt": list(prompts),
            "height": extent.height,
            "width": extent.width,
            "num_frames": extent.num_frames,
            "num_inference_steps": len(ASKED_TIMESTEPS),
            "guidance_scale": guidance,
            "true_cfg_scale": 1.0,
            "latents": latents.to(self._denoiser.device),
            "original_size": extent.original or (extent.height, extent.width),
            "crops_coords_top_left": extent.crop,
            "target_size": (extent.height, extent.width),
            "output_type": "pil",
        }
        return {name: value for name, value in offered.items() if name in self._takes and value is not None}

    def _unguided_scale(self) -> float | None:
        """The guidance scale at which there is none; or the one that the denoiser is told, where it takes a number."""
        if self._parts.latents.guidance == "embedded":
            return self._guidance
        scale = self._takes.get("guidance_scale")
        return None if scale is None or scale.default is None else self._unguided

    def _refusal(self, reason: str) -> ComponentError:
        return ComponentError(f"{self._parts.folder}: {type(self.pipeline).__name__} cannot be trained here: {reason}")


def _follows(rule: str, values: Sequence[float], last: float) -> bool:
    """Tell whether these are what a rule makes of the asked timesteps, to within the rounding of bfloat16."""
    expected = [TIMESTEP_RULES[rule](asked, last) for asked in ASKED_TIMESTEPS]
    return all(abs(a - b) <= 0.01 * abs(b) for a, b in zip(values, expected, strict=True))


def by_axes_of(latents: LatentFormat, latent: torch.Tensor) -> torch.Tensor:
    """Order the axes of an autoencoder's latent, and fold it, as the denoiser's latent is; no number is changed."""
    if latents.folded > 1:
        latent = fold(latent, latents.folded)
    axes = [axis for axis in AXES[:5] if axis in latents.axes]
    return latent.permute([axes.index(axis) for axis in latents.axes])


def along_channels(numbers: torch.Tensor, latents: LatentFormat) -> torch.Tensor:
    """Lay a number for each channel along that axis of a latent with a batch."""
    return numbers.reshape([-1 if axis == "channels" else 1 for axis in latents.axes])
