"""What each part of a file turns out to be: signatures compared with its patterns, and configs told from its shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lading.catalog import registry
from lading.catalog.explanation import pattern_list
from lading.catalog.identification import Candidate
from lading.catalog.normalise import Part, divide, unwrap, without_shared_prefix
from lading.catalog.problems import holes
from lading.catalog.shapes import AbsentTensorError, Shapes, UnknownSizeError
from lading.catalog.structure import Fit, Signature, patterns_of, shipped_signatures
from lading.catalog.variants import value_at, variants
from lading.errors import CheckpointError

_NEAREST = 3
_PARTIAL_SCORE = 0.2
_PARTIAL_PATTERNS = 8
"""So much must be there of a file whose other tensors are missing, or it might be anything."""
_MANY_LAYERS = 3
"""Of a list of layers, so many hold the patterns that all of them have, wherever the file was cut."""


@dataclass(frozen=True)
class Finding:
    """What one part turned out to be.

    Attributes:
        fits: the signatures that come nearest, where it is no complete network.
    """

    part: Part
    candidates: tuple[Candidate, ...]
    problems: tuple[str, ...]
    fits: tuple[Fit, ...]
    complete: bool


def findings_in(whole: Shapes, containers: tuple[str, ...], model_class: str | None) -> list[Finding]:
    """Return what is in a file; installed packages are asked where nothing that is known already fits.

    Args:
        containers: prefixes of tensors that the file itself keeps apart.
        model_class: the one class that is asked for; None for any.
    """
    found = _findings_in_parts(whole, containers, model_class)
    if not any(finding.complete for finding in found) and registry.load_entry_points():
        return _findings_in_parts(whole, containers, model_class)
    return found


def _findings_in_parts(whole: Shapes, containers: tuple[str, ...], model_class: str | None) -> list[Finding]:
    """Look at the parts that the prefixes of usual repackagings make, then at the file as one network."""
    parts = divide(whole, containers)
    findings = [_look_at(part, model_class) for part in parts]
    if any(finding.complete for finding in findings) or not any(part.prefix for part in parts):
        return findings
    first = _look_at(Part("", whole), model_class)
    if first.candidates:
        return [first]
    return findings if any(finding.candidates for finding in findings) else [*findings, first]


def signatures(model_class: str | None) -> Iterator[Signature]:
    """Yield all signatures, or those of a class."""
    for signature in (*shipped_signatures(), *registry.registered_signatures()):
        if model_class in (None, signature.model_class):
            yield signature


def _look_at(part: Part, model_class: str | None) -> Finding:
    """Compare a part, with and without its wrapping prefixes, with all signatures, or with those of a class."""
    fits: list[Fit] = []
    partial: list[tuple[int, Fit, Part]] = []
    reasons: list[str] = []
    for view in unwrap(part):
        patterns = patterns_of(view.shapes)
        these = [signature.fit(patterns) for signature in signatures(model_class)]
        finding, why_not = _complete_finding(part, view, these)
        if finding is not None:
            return finding
        reasons += why_not
        fits += these
        if len(patterns) >= _PARTIAL_PATTERNS:
            able = [fit for fit in these if fit.score >= _PARTIAL_SCORE and not fit.extra]
            lists = _whole_lists(view)
            partial += [(_refuting(fit, lists), fit, view) for fit in able]
    for view in without_shared_prefix(part):
        patterns = patterns_of(view.shapes)
        finding, _ = _complete_finding(part, view, [one.fit(patterns) for one in signatures(model_class)])
        if finding is not None:
            return finding
    fits = sorted(fits, key=lambda fit: fit.score, reverse=True)[:_NEAREST]
    return _partial_finding(part, partial, fits, reasons)


def _complete_finding(part: Part, view: Part, fits: list[Fit]) -> tuple[Finding | None, list[str]]:
    """What a part is as a whole network, and why it is not what its names say."""
    candidates: list[Candidate] = []
    problems: list[str] = []
    reasons: list[str] = []
    most = 0
    for fit in sorted(fits, key=lambda fit: fit.common, reverse=True):
        if fit.common < most:
            break  # a network that leaves more tensors beside it than another is not meant
        if fit.is_full:
            resolved = _resolve(fit.signature, view)
            most = fit.common if resolved.candidates else most
            candidates += resolved.candidates
            problems += [remark for remark in resolved.remarks if remark not in problems]
            reasons += [resolved.reason] if resolved.reason else []
    if not candidates:
        return None, reasons
    return Finding(part, tuple(candidates), (*problems, *holes(view)), (), True), reasons


def _partial_finding(part: Part, partial: list[tuple[int, Fit, Part]], fits: list[Fit], reasons: list[str]) -> Finding:
    """What a file with missing tensors is: the networks that know all that is there and that the least refutes.

    How much is missing says nothing about which of them it is.
    """
    least = min((refuting for refuting, _, _ in partial), default=0)
    likely = [(fit, view, _resolve(fit.signature, view)) for refuting, fit, view in partial if refuting == least]
    candidates: list[Candidate] = []
    problems: list[str] = list(dict.fromkeys(reasons))
    if any(not fit.missing and not resolved.lacks_tensors for fit, _, resolved in likely):
        likely = []  # nothing is missing: it is the sizes that tell no config
    for fit, view, resolved in likely:
        found, remarks = resolved.candidates, resolved.remarks
        if not found:
            found, remarks = (without_config(fit.signature, view.prefix),), (resolved.reason,)
        new = [one for one in found if not _same_network(one, candidates)]
        candidates += new
        if new and fit.missing:
            problems.append(f"{fit.signature.model_class}: tensors are missing: {pattern_list(fit.missing)}")
        if new:
            problems += [remark for remark in (*remarks, *holes(view)) if remark not in problems]
    best: dict[str, float] = {}
    for _, fit, _ in partial:
        best[fit.signature.family] = max(fit.score, best.get(fit.signature.family, 0.0))
    candidates.sort(key=lambda one: best[one.family], reverse=True)  # of a family, the order of its file
    return Finding(part, tuple(candidates), tuple(problems), tuple(fits), False)


def _whole_lists(view: Part) -> set[str]:
    """The lists of layers of which several are there."""
    heads = set()
    for pattern, names in view.shapes.by_pattern.items():
        head, mark, tail = pattern.partition(".#.")
        if mark and "#" not in tail and len(names) >= _MANY_LAYERS:
            heads.add(head)
    return heads


def _refuting(fit: Fit, lists: set[str]) -> int:
    """How many patterns are missing that no cut can have taken away: layers that should have them are there."""
    return sum(".#." in pattern and pattern.partition(".#.")[0] in lists for pattern in fit.missing)


def _same_network(one: Candidate, others: Iterable[Candidate]) -> bool:
    """Whether another layout of the same file has led to this candidate before."""
    return any((one.model_class, one.config) == (other.model_class, other.config) for other in others)


def without_config(signature: Signature, prefix: str) -> Candidate:
    """Return the candidate that names and ranks alone make."""
    architecture = registry.find_architecture(signature.family, signature.model_class)
    return Candidate(
        signature.family,
        architecture.component,
        signature.model_class,
        {},
        signature.layout,
        "structure",
        prefix=prefix,
    )


@dataclass(frozen=True)
class _Resolution:
    """What a signature that fits comes to.

    Attributes:
        remarks: on the candidates.
        reason: why there are none.
        lacks_tensors: whether that is because tensors are missing.
    """

    candidates: tuple[Candidate, ...] = ()
    remarks: tuple[str, ...] = ()
    reason: str = ""
    lacks_tensors: bool = False


def _resolve(signature: Signature, view: Part) -> _Resolution:
    """Tell the config of a network whose signature fits."""
    architecture = registry.find_architecture(signature.family, signature.model_class)
    try:
        key_map = architecture.key_map(signature.layout, view.shapes)
        shapes = view.shapes if key_map is None else Shapes(key_map.all_shapes(view.shapes))
        config = architecture.infer_config(shapes)
        extras = architecture.extras(shapes)
    except UnknownSizeError as error:
        reason = f"{signature.model_class}: the config cannot be told without {error.args[0]}"
        return _Resolution(reason=reason, lacks_tensors=isinstance(error, AbsentTensorError))
    except CheckpointError as error:
        return _Resolution(reason=f"{signature.model_class}, layout {signature.layout}: {error}")
    remarks = tuple(f"{name}: {what}, which {signature.model_class} cannot hold" for name, what in extras.items())
    candidates = tuple(
        Candidate(
            signature.family,
            architecture.component,
            signature.model_class,
            whole,
            signature.layout,
            "structure",
            {key: value_at(whole, key) for key in architecture.unverified},
            view.prefix,
            models,
        )
        for models, whole in variants(architecture, config, shapes)
    )
    return _Resolution(candidates, remarks)
