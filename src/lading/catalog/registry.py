"""Which families there are: the shipped ones, those of installed packages, and those that a program registers."""

from __future__ import annotations

import importlib
import threading
from functools import cache

from lading.catalog.architecture import Architecture, Component, Config, Family, Repository
from lading.catalog.structure import Signature, shipped_signatures
from lading.errors import IdentificationError

ENTRY_POINTS = "lading.architectures"
"""The group of entry points: each names a `Family`, an `Architecture`, or a function that returns one."""

_registered: dict[str, Family] = {}
_lock = threading.Lock()


def register_architecture(architecture: Architecture, family: str) -> None:
    """Make an architecture known: `lading.identify` recognises its checkpoints from then on.

    An architecture of the same family and class is replaced.

    Args:
        family: the name that candidates give it; it need not be one of lading's.
    """
    with _lock:
        others = _registered[family].architectures if family in _registered else ()
        kept = tuple(other for other in others if other.model_class != architecture.model_class)
        _registered[family] = Family(family, (*kept, architecture))
        registered_signatures.cache_clear()


@cache
def shipped_family(name: str) -> Family:
    """Import a family that lading ships.

    Raises:
        IdentificationError: there is none of this name.
    """
    try:
        family = importlib.import_module(f"lading.catalog.families.{name}").FAMILY
    except ModuleNotFoundError:
        raise IdentificationError(f"{name!r} is no family that lading knows: use one of {family_names()}") from None
    return family  # type: ignore[no-any-return] # a module's attribute


def family_names() -> tuple[str, ...]:
    """Return the names of all families, the shipped ones first."""
    return tuple(dict.fromkeys([*(signature.family for signature in shipped_signatures()), *_registered]))


def known_families() -> list[Family]:
    """Return all families, those that a program registered first."""
    shipped = dict.fromkeys(signature.family for signature in shipped_signatures())
    return [*_registered.values(), *(shipped_family(name) for name in shipped)]


def find_architecture(family: str, model_class: str) -> Architecture:
    """Return an architecture by its family and class.

    Raises:
        IdentificationError: there is none.
    """
    sources = [_registered[family]] if family in _registered else []
    if any(signature.family == family for signature in shipped_signatures()):
        sources.append(shipped_family(family))
    for source in sources:
        for architecture in source.architectures:
            if architecture.model_class == model_class:
                return architecture
    raise IdentificationError(f"the family {family!r} has no {model_class}: families are {', '.join(family_names())}")


def known_architecture(model_class: str) -> Architecture | None:
    """Return the first architecture of a class, such as "diffusers.FluxTransformer2DModel", that some family has."""
    return next(
        (
            architecture
            for family in known_families()
            for architecture in family.architectures
            if architecture.model_class == model_class
        ),
        None,
    )


@cache
def find_repository(model_id: str) -> Repository:
    """Return a pipeline that the catalog knows by its hub id, such as "black-forest-labs/FLUX.1-dev".

    Raises:
        IdentificationError: the catalog does not know it.
    """
    known = [family.repositories for family in known_families()]
    for repositories in known:
        if model_id in repositories:
            return repositories[model_id]
    names = ", ".join(sorted(name for repositories in known for name in repositories))
    raise IdentificationError(f"{model_id}: the catalog knows no pipeline of this id: it knows {names}")


def component_config(component: Component) -> Config:
    """Return the config of a pipeline's network.

    Raises:
        IdentificationError: no family has its class.
    """
    for family in known_families():
        for architecture in family.architectures:
            if architecture.model_class == component.model_class and component.published in architecture.published:
                return architecture.published[component.published]
    raise IdentificationError(f"no family has a {component.model_class} published as {component.published}")


@cache
def registered_signatures() -> tuple[Signature, ...]:
    """Return the signatures of what programs registered; their classes are built on the meta device for it."""
    if not _registered:
        return ()
    from lading.catalog.construction import signatures_of  # torch, which shipped families do without

    return tuple(signature for family in _registered.values() for signature in signatures_of(family))


def load_entry_points() -> bool:
    """Register what installed packages offer, once; return whether that was anything new."""
    return _load_entry_points_once()


@cache
def _load_entry_points_once() -> bool:
    from importlib.metadata import entry_points  # reads every installed package's metadata: only when it is needed

    offers = tuple(entry_points(group=ENTRY_POINTS))
    for offer in offers:
        value = offer.load()
        value = value() if callable(value) else value
        if isinstance(value, Family):
            for architecture in value.architectures:
                register_architecture(architecture, value.name)
        elif isinstance(value, Architecture):
            register_architecture(value, offer.name)
        else:
            raise IdentificationError(
                f"{offer.value}, the entry point {offer.name!r} of {ENTRY_POINTS}, is {type(value).__name__}: "
                "it must name a Family or an Architecture"
            )
    return bool(offers)
