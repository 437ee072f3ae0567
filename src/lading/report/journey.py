"""The way from words to a picture, as the calls of a run show it: calls alike, one after another, are one stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lading.report.run import Call, Passed
from lading.report.tensors import PIPELINE, is_denoiser


@dataclass(frozen=True)
class Stage:
    """Calls of one part with tensors of one shape, one after another.

    Attributes:
        title: what happens, in plain words.
        steps: the first and the last; None outside of denoising.
    """

    title: str
    part: str
    entry: str
    calls: int
    seconds: float
    steps: tuple[int, int] | None
    given: tuple[Passed, ...]
    made: tuple[Passed, ...]


def journey(calls: Sequence[Call]) -> list[Stage]:
    """Return the stages of a run, in the order of time."""
    groups: list[list[Call]] = []
    for call in calls:
        if groups and _alike(groups[-1][0], call):
            groups[-1].append(call)
        else:
            groups.append([call])
    return [_stage(group) for group in groups]


def _stage(group: Sequence[Call]) -> Stage:
    first, last = group[0], group[-1]
    steps = None if first.step is None or last.step is None else (first.step, last.step)
    seconds = sum(call.seconds for call in group)
    return Stage(_title(first), first.part, first.entry, len(group), seconds, steps, first.given, first.made)


def _alike(one: Call, other: Call) -> bool:
    return (one.part, one.entry, one.given, one.made) == (other.part, other.entry, other.given, other.made)


def _title(call: Call) -> str:
    if call.part == PIPELINE:
        return "Noise is drawn" if call.entry == "prepare_latents" else "Pixels become a picture"
    if is_denoiser(call.part):
        return "Each step takes some of the noise away"
    if call.part.startswith("text_encoder"):
        return "Tokens become embeddings"
    if call.part.startswith("image_encoder"):
        return "A picture becomes embeddings"
    if call.entry == "decode":
        return "The latent becomes pixels" if "audio" not in call.part else "The latent becomes a spectrogram"
    if call.entry == "encode":
        return "Pixels become a latent"
    return f"{call.part} computes"
