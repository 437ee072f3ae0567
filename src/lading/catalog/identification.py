"""What recognition found: candidates, and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lading.catalog.explanation import config_text, nearest_text
from lading.catalog.hashes import KnownModel
from lading.catalog.structure import Fit

if TYPE_CHECKING:
    from lading.catalog.lora import Lora


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network that a checkpoint, or a part of it, may be.

    Attributes:
        family: such as "flux".
        component: what a pipeline calls it, such as "transformer".
        model_class: such as "diffusers.FluxTransformer2DModel"; None for a published network that has no class in
            diffusers or transformers.
        config: the constructor's keyword arguments, as far as they matter.
        layout: how the file names and lays out the tensors: "diffusers", "hub", "original", ...
        match: "hash" if the checkpoint's hash is a published one, else "structure".
        unverified: what the tensors' shapes cannot tell -> the value in use.
        prefix: what stands before this network's names in the file.
        models: published checkpoints with this config.
    """

    family: str
    component: str
    model_class: str | None
    config: Mapping[str, Any]
    layout: str
    match: str
    unverified: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    models: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the candidate as JSON can hold it."""
        return {
            "family": self.family,
            "component": self.component,
            "model_class": self.model_class,
            "config": dict(self.config),
            "layout": self.layout,
            "match": self.match,
            "unverified": dict(self.unverified),
            "prefix": self.prefix,
            "models": list(self.models),
        }

    def __str__(self) -> str:
        head = f"{self.component}  {self.model_class or 'no class in diffusers or transformers'}"
        lines = [f"{head}  family {self.family}, layout {self.layout or 'unknown'}, by {self.match}"]
        if self.prefix:
            lines.append(f"  prefix      {self.prefix}")
        if self.models:
            lines.append(f"  as in       {', '.join(self.models)}")
        told = {key: value for key, value in self.config.items() if key not in self.unverified}
        if told:
            lines.append(f"  config      {config_text(told)}")
        if self.unverified:
            lines.append(f"  unverified  {config_text(self.unverified)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Identification:
    """What a checkpoint is.

    Attributes:
        hash: as `lading.hash_model_file` computes it.
        candidates: the most likely first; several of one prefix where the tensors do not tell them apart.
        problems: what is wrong or uncertain, in words.
        known: the published checkpoint of this hash.
        nearest: the architectures that come closest, where there is no candidate.
        quantised: how weights are stored in fewer bits than they compute in -> how many are stored so.
        lora: what it is where it is a LoRA, which no candidate is then.
    """

    files: tuple[Path, ...]
    hash: str
    candidates: tuple[Candidate, ...]
    problems: tuple[str, ...]
    known: KnownModel | None = None
    nearest: tuple[Fit, ...] = ()
    quantised: Mapping[str, int] = field(default_factory=dict)
    lora: Lora | None = None

    @property
    def best(self) -> Candidate | None:
        """The most likely candidate; None if the checkpoint is not recognised. See `is_ambiguous`."""
        return self.candidates[0] if self.candidates else None

    @property
    def is_ambiguous(self) -> bool:
        """Whether the tensors fit several candidates alike."""
        prefixes = [candidate.prefix for candidate in self.candidates]
        return len(set(prefixes)) < len(prefixes)

    def explain(self) -> str:
        """Return what the checkpoint is, how sure that is and why; or what comes nearest and what differs."""
        lines = [str(candidate) for candidate in self.candidates]
        if self.lora is not None:
            lines.append(str(self.lora))
        if not lines:
            lines.append("not recognised")
        if self.known is not None:
            lines.append(f"known as  {self.known}")
        if self.quantised:
            lines.append("quantised " + ", ".join(f"{scheme} x {count}" for scheme, count in self.quantised.items()))
        lines += [f"problem   {problem}" for problem in self.problems]
        lines += [nearest_text(fit) for fit in self.nearest]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.explain()
