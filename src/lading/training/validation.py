"""Pictures of the same prompts from the same seeds as training goes on, in one grid."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lading.loading.generation import Request, draw
from lading.loading.network import construction
from lading.training.conditions import Conditions, Tree
from lading.training.durable import whole
from lading.training.parts import PipelineParts
from lading.training.rehearsal import Extent, Rehearsal
from lading.training.settings import Settings
from lading.training.store import Store, fingerprint


class Validation:
    """Prompts whose encodings are in the store, so that they are drawn without the text encoders.

    Args:
        extent: of the pictures.
        facts: that encodings depend on, beside the prompt.
    """

    def __init__(
        self, parts: PipelineParts, settings: Settings, extent: Extent, store: Store, facts: Mapping[str, Any]
    ) -> None:
        self._parts = parts
        self._live = settings.method == "textual-inversion"
        self._settings = settings
        self._extent = extent
        self._store = store
        self._facts = facts

    @property
    def missing(self) -> list[str]:
        """Prompts that are not encoded yet; none where training changes what they mean."""
        if self._live:
            return []
        return [prompt for prompt in self._settings.validation_prompts if not self._store.has(self._key(prompt))]

    def encode(self, rehearsal: Rehearsal) -> None:
        """Bring the encodings of the prompts into the store."""
        for prompt in self.missing:
            encodings = rehearsal.encodings(prompt, self._extent, self._settings.validation_guidance)
            self._store.write(self._key(prompt), *Conditions({"encodings": encodings}).to_tensors())

    def draw(self, components: Mapping[str, Any], file: Path | None) -> None:
        """Draw all prompts and save them in one picture, or, where there is no file, draw along with who saves them.

        Args:
            components: the denoiser, the autoencoder and the scheduler, by name; encoders only where they are trained.
        """
        absent = dict.fromkeys((*self._parts.encoders, *self._parts.unused))
        with construction():
            pipeline = self._parts.pipeline_class.from_pretrained(str(self._parts.folder), **{**absent, **components})
        pictures = []
        for seed, prompt in enumerate(self._settings.validation_prompts):
            with nullcontext() if self._live else _recalled(pipeline, self._encodings(prompt)):
                frames = draw(pipeline, self._request(prompt, seed))
            pictures.append(frames[len(frames) // 2])
        if file is None:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file, durable=False) as part:
            grid(pictures).save(part, format="PNG")

    def _encodings(self, prompt: str) -> list[Tree]:
        encodings: list[Tree] = Conditions.from_tensors(*self._store.read(self._key(prompt))).arguments["encodings"]
        return encodings

    def _request(self, prompt: str, seed: int) -> Request:
        settings, extent = self._settings, self._extent
        size = (extent.height, extent.width, extent.num_frames)
        return Request(prompt, seed, None, *size, settings.validation_steps, settings.validation_guidance)

    def _key(self, prompt: str) -> str:
        extent = (self._extent.height, self._extent.width, self._extent.num_frames)
        facts = json.loads(json.dumps(dict(self._facts)))
        guidance = self._settings.validation_guidance
        return fingerprint(kind="encodings", prompt=prompt, extent=extent, guidance=guidance, facts=facts)


def grid(pictures: Sequence[Image.Image]) -> Image.Image:
    """Lay pictures of one size out in rows, about as many as there are columns."""
    columns = math.ceil(math.sqrt(len(pictures)))
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture.convert("RGB"), (number % columns * width, number // columns * height))
    return sheet


@contextmanager
def _recalled(pipeline: Any, encodings: Sequence[Tree]) -> Iterator[None]:
    """Let a pipeline's prompts be encoded already: its calls are answered in their order."""
    answers = iter(encodings)
    device = pipeline._execution_device

    def answer(*_args: Any, **_kwargs: Any) -> Tree:
        return Conditions({"": next(answers)}).to(torch.device(device)).arguments[""]

    pipeline.encode_prompt = answer
    try:
        yield
    finally:
        del pipeline.encode_prompt
