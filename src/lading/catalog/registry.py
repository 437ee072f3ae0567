"""Which families there are: the shipped ones, those of installed packages, and those that a program registers."""

from __future__ import annotations

import importlib
import threading
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from lading.catalog.architecture import Architecture, Component, Config, Family, Repository
from lading.catalog.structure import Signature, shipped_signatures
from lading.errors import IdentificationError

if TYPE_CHECKING:
    from lading.catalog.lora_bases import LoraBase

ENTRY_POINTS = "lading.architectures"
"""The group of entry points: each names a `Family`, an `Architecture`, or a function that returns one."""

_registered: dict[str, Family] = {}
_classes: dict[str, type] = {}
_lock = threading.Lock()


def register_architecture(architecture: Architecture, family: str, network: type | None = None) -> None:
    """Make an architecture known: its checkpoints are recognised, and its networks planned, from then on.

    An architecture of the same family and class is replaced.

    Args:
        family: the name that candidates give it; it need not be one of lading's.
        network: the class that `model_class` names, where it cannot be imported by that name.
    """
    with _lock:
        if network is not None:
            _classes[architecture.model_class] = network
        others = _registered[family].architectures if family in _registered else ()
        kept = tuple(other for other in others if other.model_class != architecture.model_class)
        _registered[family] = Family(family, (*kept, architecture))
        registered_signatures.cache_clear()
        registered_lora_bases.cache_clear()


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


def registered_class(model_class: str) -> type | None:
    """Return the class that was registered under a name; None where it is to be imported."""
    return _classes.get(model_class)


def architecture_of(network: type | str) -> tuple[str, Architecture] | None:
    """Return the family and the architecture of a class; None for a class that the catalog lacks.

    Args:
        network: the class, or its name, such as "diffusers.FluxTransformer2DModel". A class goes by that of any package
            that holds it.
    """
    if isinstance(network, str):
        names = {network}
    else:
        packages = accumulate(network.__module__.split("."), "{}.{}".format)
        names = {f"{package}.{network.__qualname__}" for package in packages}
        names.update(name for name, registered in _classes.items() if registered is network)
    for name, family in _registered.items():
        for architecture in family.architectures:
            if architecture.model_class in names:
                return name, architecture
    for signature in shipped_signatures():
        if signature.model_class in names:
            return signature.family, find_architecture(signature.family, signature.model_class)
    return None


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
    """Return the signatures of what programs registered; their classes are built on the meta device for it.

    Raises:
        IdentificationError: a class cannot be found or built; the message names the family.
    """
    return _of_registered("signatures_of")


@cache
def registered_lora_bases() -> tuple[LoraBase, ...]:
    """Return what LoRAs look like that are made for the networks that programs registered.

    Raises:
        IdentificationError: a class cannot be found or built; the message names the family.
    """
    return _of_registered("lora_bases_of")


def _of_registered(maker: str) -> tuple[Any, ...]:
    """What a function of `lading.catalog.construction`, which imports torch, makes of the registered families."""
    if not _registered:
        return ()
    make = getattr(importlib.import_module("lading.catalog.construction"), maker)
    made: list[Any] = []
    for family in _registered.values():
        try:
            made += make(family)
        except IdentificationError as error:
            raise IdentificationError(f"the registered family {family.name!r}: {error}") from error
    return tuple(made)


def load_entry_points() -> bool:
    """Register what installed packages offer, once; return whether that was anything new.

    Raises:
        IdentificationError: an entry point is broken; the message names it.
    """
    return _load_entry_points_once()


@cache
def _load_entry_points_once() -> bool:
    from importlib.metadata import entry_points  # reads every installed package's metadata: only when it is needed

    offers = tuple(entry_points(group=ENTRY_POINTS))
    for offer in offers:
        package = f" of {offer.dist.name}" if offer.dist is not None else ""
        where = f"the entry point {offer.name!r}{package} in {ENTRY_POINTS}, {offer.value}"
        try:
            family = _offered(offer.load(), offer.name)
            _check(family)
        except Exception as error:
            what = str(error) if isinstance(error, IdentificationError) else f"{type(error).__name__}: {error}"
            raise IdentificationError(f"{where}, fails: {what}: update the package, or remove it") from error
        for architecture in family.architectures:
            register_architecture(architecture, family.name)
    return bool(offers)


def _offered(value: object, name: str) -> Family:
    """What an entry point comes to; an architecture alone gets its name as that of the family."""
    value = value() if callable(value) else value
    if isinstance(value, Architecture):
        return Family(name, (value,))
    if isinstance(value, Family):
        return value
    raise IdentificationError(
        f"it gives {value!r:.80}, and must name a Family, an Architecture, or a function that returns one"
    )


def _check(family: Family) -> None:
    """Build what a family's architectures say, before anything else is compared with it."""
    from lading.catalog.construction import signatures_of  # torch, which whoever offers a network has

    signatures_of(family)
