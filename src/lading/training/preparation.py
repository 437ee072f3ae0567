"""From pictures and captions to what the denoiser learns from: encoders come, compute what is not there yet, and go."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from lading.errors import LadingError, ShapeError
from lading.latents import LatentShape
from lading.loading.components import load_components
from lading.loading.configs import read_config
from lading.training.buckets import Bucket, Fit, fit, make_buckets, nearest_bucket
from lading.training.conditions import Conditions
from lading.training.dataset import Example
from lading.training.loop import Sample
from lading.training.parts import PipelineParts
from lading.training.pictures import BadPictureError, measure, read_pixels
from lading.training.rehearsal import DenoiserRules, Extent, Rehearsal, along_channels, by_axes_of
from lading.training.settings import Settings
from lading.training.store import Digests, Store, fingerprint, sampled_digest
from lading.training.validation import Validation
from lading.training.watching import Watcher

CACHE_FORMAT = 1
"""Rises when what is computed here changes, so that older entries count no more."""


@dataclass(frozen=True)
class Framed:
    """An example and how it fits its bucket.

    Attributes:
        extent: that the denoiser is told.
        shape: of its latent.
    """

    example: Example
    fit: Fit
    extent: Extent
    shape: LatentShape


@dataclass(frozen=True)
class Prepared:
    """An example whose latents and conditions are in the store.

    Attributes:
        latents: keys, of the picture and of its mirror image where that is shown too.
        conditions: key, of the caption.
        unconditional: key, of no caption; None where captions are never left out.
    """

    framed: Framed
    latents: tuple[str, ...]
    conditions: str
    unconditional: str | None


class PreparedExamples:
    """Examples read from the store as they are needed.

    Args:
        conditions: gives those of an example where they are not in the store, as they change with training.
    """

    def __init__(
        self,
        prepared: Sequence[Prepared],
        store: Store,
        dropout: float,
        conditions: Callable[[Framed], Conditions] | None = None,
    ) -> None:
        self._prepared = prepared
        self._store = store
        self._dropout = dropout
        self._conditions = conditions
        self._read = lru_cache(maxsize=64)(store.read)

    def __len__(self) -> int:
        return len(self._prepared)

    @property
    def buckets(self) -> tuple[tuple[int, ...], ...]:
        return tuple(each.framed.shape.shape for each in self._prepared)

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        each = self._prepared[index]
        turn, hidden = torch.rand(2, generator=generator).tolist()
        key = each.latents[int(turn * len(each.latents))]
        tensors, _ = self._store.read(key)
        latents = tensors["mean"]
        if "deviation" in tensors:
            latents = latents + tensors["deviation"] * torch.randn(latents.shape, generator=generator)
        return Sample(latents, self._conditions_of(each, hidden < self._dropout), each.framed.shape)

    def _conditions_of(self, each: Prepared, hidden: bool) -> Conditions:
        if self._conditions is not None:
            return self._conditions(each.framed)
        key = each.unconditional if hidden and each.unconditional is not None else each.conditions
        return Conditions.from_tensors(*self._read(key))


def frame_examples(
    examples: Sequence[Example], parts: PipelineParts, settings: Settings, watcher: Watcher
) -> list[Framed]:
    """Find out how each picture fits its bucket, from its header.

    Raises:
        LadingError: a picture cannot be read and none may be left out, or none is left.
        ShapeError: the model cannot make films of so many frames.
    """
    resolution = settings.resolution or default_resolution(parts)
    multiple = parts.latents.multiple
    if resolution < multiple:
        raise ShapeError(f"resolution {resolution} is below {multiple}, the least that the model makes: raise it")
    side = resolution // multiple * multiple
    buckets = make_buckets(resolution, multiple, settings.max_aspect) if settings.buckets else (Bucket(side, side),)
    frames = settings.num_frames if parts.latents.frames is not None else None
    if parts.latents.frames is not None and frames is None:
        frames = parts.latents.frames.first
    framed = []
    for example in examples:
        try:
            height, width, found = measure(example.file)
            if frames is not None and found < frames:
                raise BadPictureError(f"{example.file}: it has {found} frames, and {frames} are asked for")
        except BadPictureError as error:
            _leave_out(error, settings, watcher)
            continue
        placed = fit(height, width, nearest_bucket(height, width, buckets))
        size = placed.bucket
        extent = Extent(size.height, size.width, frames, (height, width), (placed.top, placed.left))
        framed.append(Framed(example, placed, extent, parts.latents.shape(1, size.height, size.width, frames)))
    if not framed:
        raise LadingError("none of the pictures can be read: nothing is left to learn from")
    if any(each.shape.padding for each in framed):
        raise ShapeError(f"films of {frames} frames are padded by this model: choose a number of frames that fills it")
    return framed


def default_resolution(parts: PipelineParts) -> int:
    """Return the side of the pictures that a pipeline draws by default, in pixels."""
    config = read_config(parts.denoiser.folder / "config.json")
    size = config.get("sample_size")
    if isinstance(size, int) and size * parts.latents.spatial <= 2048:
        return size * parts.latents.spatial
    return 512 if parts.latents.frames is not None else 1024


class Preparation:
    """Makes what is missing in a store, one encoder after the other; each is loaded only if it is needed.

    Args:
        dtype: in which the encoders of captions, and later the denoiser, compute.
        store: of latents and conditions.

    Attributes:
        model: the sha256 of every file of the encoders and the autoencoder, and which variant is read, part by part.
    """

    def __init__(
        self,
        parts: PipelineParts,
        settings: Settings,
        dtype: torch.dtype,
        device: torch.device,
        store: Store,
        watcher: Watcher,
    ) -> None:
        self.parts = parts
        self.settings = settings
        self.dtype = dtype
        self.device = device
        self.store = store
        self._watcher = watcher
        self._digests = Digests(store.folder / "digests.json")
        encoders = (parts.autoencoder.name, *parts.encoders)
        self.model = {
            name: [self._digests.of_all(_files(parts, name), parts.folder), parts.variants.get(name)]
            for name in encoders
        }
        self._digests.save()

    def prepare(
        self, framed: Sequence[Framed], validation: Validation | None = None
    ) -> tuple[DenoiserRules, list[Prepared]]:
        """Bring conditions and latents of all examples into the store, and the encodings of validation prompts.

        Raises:
            LadingError: a picture cannot be read, and none may be left out.
        """
        missing = {key: value for key, value in self._wanted(framed).items() if not self.store.has(key)}
        unsaid = validation.missing if validation is not None else []
        if missing or unsaid or not self.store.has(self._rules_key()):
            self._encode_captions(missing, validation)
            gc.collect()  # of the encoders, which hold themselves where they are streamed
        rules = self._read_rules()
        prepared = self._encode_pictures(framed, rules)
        self._digests.save()
        if not prepared:
            raise LadingError("none of the pictures can be read: nothing is left to learn from")
        return rules, prepared

    def _wanted(self, framed: Sequence[Framed]) -> dict[str, tuple[str, Extent]]:
        """Captions and what they are encoded for, by key; none where training changes what they mean."""
        if self.settings.method == "textual-inversion":
            return {}
        captions = [(each.example.caption, each.extent) for each in framed]
        if self.settings.caption_dropout > 0:
            captions += [("", each.extent) for each in framed]
        return {self._conditions_key(*caption): caption for caption in captions}

    def rehearsal(self, streamed: bool = True) -> Rehearsal:
        """Load the encoders into a pipeline that is run for its conditions.

        Args:
            streamed: whether they may be, under a limit.
        """
        names = [*self.parts.encoders, "scheduler"]
        components = load_components(
            self.parts.folder,
            names,
            torch_dtype=self.dtype,
            device=self.device,
            variant=self.parts.variants_of(names),
            memory_limit=self.settings.memory_limit if streamed else None,
            host_memory_limit=self.settings.host_memory_limit if streamed else None,
        )
        return Rehearsal(self.parts, components, self.dtype, self.device, self.settings.guidance)

    def _encode_captions(self, missing: dict[str, tuple[str, Extent]], validation: Validation | None) -> None:
        self._watcher.phase("captions", len(missing))
        rehearsal = self.rehearsal()
        if validation is not None:
            validation.encode(rehearsal)
        tell_of_long_captions(rehearsal, sorted({caption for caption, _ in missing.values()}), self._watcher)
        if not self.store.has(self._rules_key()):
            self._keep_rules(rehearsal)
        for key, (caption, extent) in missing.items():
            self.store.write(key, *rehearsal.conditions(caption, extent).to_tensors())
            self._watcher.advance()

    def _encode_pictures(self, framed: Sequence[Framed], rules: DenoiserRules) -> list[Prepared]:
        """Return the examples, without those whose pictures cannot be decoded."""
        mirrored = (False, True) if self.settings.flip else (False,)
        keys = [[self._latents_key(each, flipped) for flipped in mirrored] for each in framed]
        missing = {key for each in keys for key in each if not self.store.has(key)}
        autoencoder = None
        if missing:
            self._watcher.phase("pictures", len(missing))
            autoencoder = self._load_autoencoder()
        prepared = []
        for each, latents in zip(framed, keys, strict=True):
            try:
                for key, flipped in zip(latents, mirrored, strict=True):
                    if key in missing:
                        pixels = read_pixels(each.example.file, each.fit, each.extent.num_frames, flipped)
                        self.store.write(key, self._encoded(autoencoder, pixels, rules))
                        missing.discard(key)
                        self._watcher.advance()
            except BadPictureError as error:
                _leave_out(error, self.settings, self._watcher)
                continue
            hidden = self._conditions_key("", each.extent) if self.settings.caption_dropout > 0 else None
            conditions = self._conditions_key(each.example.caption, each.extent)
            prepared.append(Prepared(each, tuple(latents), conditions, hidden))
        return prepared

    @property
    def denoiser(self) -> str:
        """A fingerprint of the denoiser's weights and config."""
        files = sorted(_files(self.parts, self.parts.denoiser.name))
        variant = self.parts.variants.get(self.parts.denoiser.name)
        return fingerprint(files=[(file.name, sampled_digest(file)) for file in files], variant=variant)

    @property
    def timesteps(self) -> int:
        """Of the scheduler."""
        return int(read_config(self.parts.folder / "scheduler" / "scheduler_config.json")["num_train_timesteps"])

    def _load_autoencoder(self) -> Any:
        """Load the autoencoder in float32: in half precision some overflow, and none takes much memory."""
        names = [self.parts.autoencoder.name]
        (autoencoder,) = load_components(
            self.parts.folder,
            names,
            torch_dtype=torch.float32,
            device=self.device,
            variant=self.parts.variants_of(names),
            memory_limit=self.settings.memory_limit,
            host_memory_limit=self.settings.host_memory_limit,
        ).values()
        return autoencoder

    @torch.no_grad()
    def _encoded(self, autoencoder: Any, pixels: torch.Tensor, rules: DenoiserRules) -> dict[str, torch.Tensor]:
        """Return the mean, and the deviation where there is one, of a picture's latent in the denoiser's form."""
        latents = self.parts.latents
        picture = pixels.unsqueeze(1) if "frames" in latents.axes and pixels.ndim == 3 else pixels
        output = autoencoder.encode(picture.unsqueeze(0).to(self.device))
        scale, shift = (along_channels(torch.tensor(numbers), latents) for numbers in (rules.scale, rules.shift))
        distribution = getattr(output, "latent_dist", None)
        mean = output.latent if distribution is None else distribution.mean
        encoded = {"mean": (by_axes_of(latents, mean.float().cpu()) - shift) / scale}
        if distribution is not None:
            encoded["deviation"] = by_axes_of(latents, distribution.std.float().cpu()) / scale.abs()
        return encoded

    def _keep_rules(self, rehearsal: Rehearsal) -> None:
        self.store.write(self._rules_key(), {"none": torch.zeros(1)}, json.dumps(rehearsal.rules().to_json()))

    def _read_rules(self) -> DenoiserRules:
        return DenoiserRules.from_json(json.loads(self.store.read(self._rules_key())[1]))

    def _rules_key(self) -> str:
        names = (self.parts.denoiser.name, self.parts.autoencoder.name)
        configs = {name: read_config(self.parts.folder / name / "config.json") for name in names}
        return fingerprint(
            kind="rules", model=self._model_of(self.parts.autoencoder.name), configs=configs, **_VERSIONS
        )

    def _latents_key(self, each: Framed, flipped: bool) -> str:
        return fingerprint(
            kind="latents",
            model=self._model_of(self.parts.autoencoder.name),
            dtype="float32",
            picture=self._digests.of(each.example.file),
            fit=asdict(each.fit),
            frames=each.extent.num_frames,
            flipped=flipped,
            rules=self._rules_key(),
        )

    def _conditions_key(self, caption: str, extent: Extent) -> str:
        told = self.parts.tells_original_size
        return fingerprint(
            kind="conditions",
            model=self._model_of(*self.parts.encoders),
            dtype=str(self.dtype),
            caption=caption,
            extent=asdict(extent if told else replace(extent, original=None, crop=(0, 0))),
            guidance=self.settings.guidance,
            pipeline=self.parts.pipeline_class.__name__,
            **_VERSIONS,
        )

    def _model_of(self, *names: str) -> dict[str, Any]:
        return {name: self.model[name] for name in names}


_VERSIONS = {"diffusers": diffusers.__version__, "transformers": transformers.__version__, "format": CACHE_FORMAT}


def tell_of_long_captions(rehearsal: Rehearsal, captions: Sequence[str], watcher: Watcher) -> None:
    """Tell of captions of which a tokenizer reads only the beginning."""
    for name, tokenizer in rehearsal.pipeline.components.items():
        limit = getattr(tokenizer, "model_max_length", None)
        if not isinstance(limit, int) or limit > _LONGEST or not callable(tokenizer):
            continue
        for caption in captions:
            tokens = len(tokenizer(caption, truncation=False, verbose=False).input_ids)
            if tokens > limit:
                watcher.tell(
                    f"{name} reads {limit} of the {tokens} tokens of the caption {_clip(caption)!r}: shorten it"
                )


_LONGEST = 100_000
"""Tokenizers without a limit state a number far above this."""


def _clip(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _files(parts: PipelineParts, name: str) -> list[Path]:
    return [file for file in (parts.folder / name).rglob("*") if file.is_file()]


def _leave_out(error: BadPictureError, settings: Settings, watcher: Watcher) -> None:
    if settings.on_bad == "fail":
        raise error
    watcher.tell(f"left out: {error}")
