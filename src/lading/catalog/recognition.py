"""From a path to what the checkpoint is: hash, structure, config from shapes. Plain Python; no data is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from lading.catalog.change import Shape
from lading.catalog.findings import findings_in, signatures, without_config
from lading.catalog.hashes import KnownModel, known_models
from lading.catalog.identification import Candidate, Identification
from lading.catalog.normalise import divide, may_hold_adapters, sort_content, unwrap
from lading.catalog.problems import ambiguities, left_over, missing_shards, why_unknown
from lading.catalog.shapes import Shapes
from lading.catalog.structure import patterns_of
from lading.catalog.variants import with_configs
from lading.checkpoint.inventory import Checkpoint, hash_layout, open_checkpoint
from lading.checkpoint.quantised import find_weights

if TYPE_CHECKING:
    from lading.checkpoint.files import CheckpointPath

_NEAREST = 3


def identify(path: CheckpointPath) -> Identification:
    """Tell what a checkpoint is: family, class, config, layout; from its header alone, offline and without torch.

    Where the tensors fit several models alike, all are candidates; where none fits, `.explain()` says what comes near
    and what differs.

    Args:
        path: a file, a list of files, a folder, a glob or an `index.json`; shards may be missing.

    Raises:
        CheckpointError: there is no such file, or it is damaged, unsafe or not a checkpoint.

    >>> import lading
    >>> lading.identify(lading.shipped_model() / "vae").best.model_class
    'diffusers.AutoencoderKL'
    """
    return identify_checkpoint(open_checkpoint(path, complete=False))


def identify_checkpoint(checkpoint: Checkpoint, model_class: str | None = None) -> Identification:
    """Tell what an opened checkpoint is, or what it is as a network of one class; see `identify`."""
    weights = find_weights(checkpoint)
    shapes = {name: info.shape for name, info in weights.tensors.items()}
    found = _identify(shapes, checkpoint.hash(), _hints(checkpoint), checkpoint, model_class)
    if not weights.shapes_known and found.lora is None:
        found = _without_shapes(found, shapes, checkpoint.containers, model_class)
    candidates, contradictions = with_configs(list(found.candidates), checkpoint)
    problems = [missing_shards(checkpoint.missing)] if checkpoint.missing else []
    problems += [f"quantised: {remedy}" for remedy in weights.remedies]
    problems += [*found.problems, *contradictions, *ambiguities(candidates)]
    return replace(
        found,
        files=checkpoint.files,
        candidates=tuple(candidates),
        problems=tuple(problems),
        quantised=weights.schemes,
    )


def identify_tensors(shapes: Mapping[str, Shape]) -> Identification:
    """Tell what a state dict is, given its names and shapes; see `identify`."""
    found = _identify(shapes, hash_layout(shapes), "")
    return replace(found, problems=(*found.problems, *ambiguities(found.candidates)))


def _without_shapes(
    found: Identification, shapes: Mapping[str, Shape], containers: tuple[str, ...], model_class: str | None
) -> Identification:
    """Name the networks of a file whose shapes are not those of its network: by names, without their configs."""
    candidates = [
        without_config(signature, view.prefix)
        for part in divide(Shapes(shapes), containers)
        for view in unwrap(part)
        for patterns in (patterns_of(view.shapes),)
        for signature in signatures(model_class)
        if signature.fit(patterns).is_full
    ]
    return replace(found, candidates=tuple(candidates) or found.candidates)


def _identify(
    shapes: Mapping[str, Shape],
    digest: str,
    hints: str,
    checkpoint: Checkpoint | None = None,
    model_class: str | None = None,
) -> Identification:
    problems = []
    known = known_models().get(digest)
    if known is not None and any("," in name or ":" in name for name in shapes):
        problems.append("the hash is a published one, but names with commas or colons can imitate any: it is not used")
        known = None
    if may_hold_adapters(shapes):
        from lading.catalog.lora import lora_problems, recognise_lora  # costs what few files need

        lora = recognise_lora(shapes, checkpoint, hints)
        if lora is not None:
            return Identification((), digest, (), (*problems, *lora_problems(lora)), known, lora=lora)
    content = sort_content(shapes)
    for scheme, count in content.companions.items():
        problems.append(f"quantised: {count} tensors are what {scheme} adds; shapes of quantised weights may differ")
    findings = findings_in(content.whole, () if checkpoint is None else checkpoint.containers, model_class)
    candidates = _ranked([one for finding in findings for one in finding.candidates], known, hints)
    problems += [problem for finding in findings for problem in finding.problems]
    if candidates:
        problems += [left_over(finding.part) for finding in findings if not finding.candidates]
    if known is not None and candidates:
        candidates = [replace(candidate, match="hash") for candidate in candidates]
    elif known is not None:
        problems.append(f"{known}: known, no network class in diffusers or transformers takes these tensors")
        candidates = [Candidate(name, "", None, {}, "", "hash") for name in known.names]
        return Identification((), digest, tuple(candidates), tuple(problems), known)
    fits = [fit for finding in findings if not finding.complete for fit in finding.fits]
    nearest = tuple(sorted(fits, key=lambda fit: fit.score, reverse=True)[:_NEAREST])
    if not candidates:
        problems.append(why_unknown(shapes, nearest))
    return Identification((), digest, tuple(candidates), tuple(problems), known, nearest)


def _ranked(candidates: list[Candidate], known: KnownModel | None, hints: str) -> list[Candidate]:
    """The candidates of each prefix by what names one of their models: path and metadata, the table of hashes, and the
    other networks in the file."""
    order = list(dict.fromkeys(candidate.prefix for candidate in candidates))
    elsewhere = {one: [other.models for other in candidates if other.prefix != one.prefix] for one in candidates}

    def doubt(candidate: Candidate) -> tuple[int, ...]:
        told = known is not None and known.repository in candidate.models
        named = any(model.rpartition("/")[2].lower() in hints for model in candidate.models)
        company = any(not set(models).isdisjoint(candidate.models) for models in elsewhere[candidate])
        return order.index(candidate.prefix), not named, not told, not company

    return sorted(candidates, key=doubt)


def _hints(checkpoint: Checkpoint) -> str:
    texts = [str(file) for file in checkpoint.files[:1]]
    texts += [value for value in checkpoint.metadata.values() if len(value) < 1000]
    return " ".join(texts).lower()
