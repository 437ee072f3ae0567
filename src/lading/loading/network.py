"""Networks built empty and filled from tensors, whichever library their class comes from.

diffusers and transformers classes are built as their own `from_pretrained` builds them, so that outputs are equal bit
for bit: under the same default dtype, with the modules that they keep in float32, and with their own renaming of
older checkpoints' keys.
"""

from __future__ import annotations

import copy
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from lading.checkpoint.dtypes import DtypeOf
from lading.errors import CheckpointError, ComponentError
from lading.loading.initialization import skip_model_initialization
from lading.memory.engine import parameter_like

EntryT = TypeVar("EntryT")

_LIBRARY_LOGGING = ("diffusers.utils.logging", "transformers.utils.logging")

_CONSTRUCTION = threading.RLock()
"""The default dtype and the libraries' patches of torch.nn.init are the whole process's: one construction at a time."""


@contextmanager
def construction(dtype: torch.dtype | None = None) -> Iterator[None]:
    """Hold the process-wide state that constructors depend on: a default dtype, and no library's progress bars."""
    with _CONSTRUCTION, _without_progress_bars():
        before = torch.get_default_dtype()
        if dtype is not None and dtype.is_floating_point and dtype.itemsize > 1:
            torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    loggings = [sys.modules[name] for name in _LIBRARY_LOGGING if name in sys.modules]
    shown = [logging for logging in loggings if logging.is_progress_bar_enabled()]
    for logging in shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging in shown:
            logging.enable_progress_bar()


def is_diffusers_model(model_class: type) -> bool:
    """Tell whether a class is one of diffusers' networks, without importing diffusers for others."""
    return _has_base(model_class, "diffusers.models.modeling_utils", "ModelMixin")


def is_transformers_model(model_class: type) -> bool:
    """Tell whether a class is one of transformers' networks, without importing transformers for others."""
    return _has_base(model_class, "transformers.modeling_utils", "PreTrainedModel")


def build_empty(model_class: type[torch.nn.Module], config: Any, dtype: torch.dtype | None) -> torch.nn.Module:
    """Build a network with its parameters on the meta device and its buffers computed.

    Args:
        config: the constructor's keyword arguments; for transformers classes also a config object.
        dtype: the default dtype during construction.

    Raises:
        ComponentError: the class does not take this config.
    """
    try:
        with construction(dtype), skip_model_initialization():
            if is_diffusers_model(model_class):
                return model_class.from_config(dict(config or {}))  # type: ignore[attr-defined, no-any-return] # ConfigMixin's
            if is_transformers_model(model_class):
                return model_class(transformers_config(model_class, config))
            return model_class(**(config or {}))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ComponentError(f"{model_class.__name__} cannot be built from its config: {error}") from error


def transformers_config(model_class: type, config: Any) -> Any:
    """Return the config object of a transformers class for a mapping, an object or None."""
    config_class = model_class.config_class  # type: ignore[attr-defined] # every PreTrainedModel has one
    if isinstance(config, Mapping):
        return config_class.from_dict(dict(config))
    return config_class() if config is None else copy.deepcopy(config)  # the network's own, as transformers has it


def kept_in_float32(model_class: type, dtype: torch.dtype | None) -> Callable[[str], bool]:
    """Return which parameters a diffusers class keeps in float32 when it is loaded in a dtype.

    Source of the rule: `load_model_dict_into_meta` in diffusers/models/model_loading_utils.py.
    """
    applies = is_diffusers_model(model_class) and dtype in (torch.float16, torch.bfloat16)
    kept = frozenset(getattr(model_class, "_keep_in_fp32_modules", None) or ()) if applies else frozenset()
    return lambda name: not kept.isdisjoint(name.split("."))


def kept_by_transformers(model: torch.nn.Module, dtype: torch.dtype | None) -> Callable[[str], bool]:
    """Return which tensors of a checkpoint a transformers network keeps in float32 when it is loaded in a dtype.

    Source of the rule: `_get_dtype_plan` in transformers/modeling_utils.py. Submodels add to it, so it takes a network.
    """
    kept: set[str] = set()
    if dtype == torch.float16:
        kept |= model._keep_in_fp32_modules  # type: ignore[arg-type] # PreTrainedModel's
    if dtype in (torch.float16, torch.bfloat16):
        kept |= model._keep_in_fp32_modules_strict  # type: ignore[arg-type] # PreTrainedModel's
    return lambda name: any(module in name for module in kept)


def kept_in_float32_by_its_library(
    network: torch.nn.Module | type[torch.nn.Module], dtype: torch.dtype | None
) -> Callable[[str], bool]:
    """Return which tensors a network keeps in float32 when it is loaded in a dtype, whichever library it is of.

    Args:
        network: built, where its class is one of transformers; its class is enough for others.
    """
    model_class = network if isinstance(network, type) else type(network)
    if is_transformers_model(model_class) and isinstance(network, torch.nn.Module):
        return kept_by_transformers(network, dtype)
    return kept_in_float32(model_class, dtype)


def loaded_dtypes(network: torch.nn.Module | type[torch.nn.Module], dtype: torch.dtype | None) -> DtypeOf:
    """Return the dtype in which each tensor of a network is loaded; see `kept_in_float32_by_its_library`."""
    kept = kept_in_float32_by_its_library(network, dtype)
    return lambda name: torch.float32 if kept(name) else dtype


def named_by_transformers(model: Any, entries: Mapping[str, EntryT]) -> tuple[dict[str, EntryT], list[str]]:
    """Give a checkpoint's entries the names of a transformers network; also list weights that it computes from several.

    Source of the rule: `convert_and_load_state_dict_in_model` in transformers/core_model_loading.py.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if not isinstance(entry, WeightRenaming)]
    own, prefix = model.state_dict(keep_vars=True), model.base_model_prefix
    found: dict[str, EntryT] = {}
    computed: list[str] = []
    for name, entry in entries.items():
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, own)
        if renamed not in own and name in own:
            renamed, pattern = rename_source_key(name, [], [], prefix, own)
        if pattern is not None and renamed in own:
            computed.append(renamed)
        found[renamed] = entry
    return found, computed


def with_current_names(model: torch.nn.Module, entries: Mapping[str, EntryT]) -> Mapping[str, EntryT]:
    """Rename a checkpoint's entries as a diffusers network renames its keys from before 0.18.

    Args:
        entries: whatever goes by the tensors' names; where nothing is renamed they are returned as they are, unread.
    """
    names = {name: name for name in entries}
    renamed = model._fix_state_dict_keys_on_load(dict(names))  # type: ignore[operator] # ModelMixin's
    return entries if renamed == names else {new: entries[old] for new, old in renamed.items()}


def fill(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Make tensors the parameters and buffers of a network; nothing is copied.

    Tied parameters stay tied: it is enough that one of their names has a tensor.

    Args:
        source: where the tensors come from, for the message.

    Raises:
        CheckpointError: names are missing, unexpected or mis-shaped; all of them are listed.
    """
    own = model.state_dict(keep_vars=True)
    twins = _tied_names(model)
    ignored = _patterns(model, "_keys_to_ignore_on_load_unexpected")
    optional = _patterns(model, "_keys_to_ignore_on_load_missing")
    given = {name for name in tensors if name in own or not (ignored and ignored.search(name))}
    missing = [
        name
        for name in own
        if name not in given
        and not any(twin in given for twin in twins.get(name, ()))
        and not (optional and optional.search(name) and not own[name].is_meta)
    ]
    unexpected = [name for name in tensors if name in given and name not in own]
    chosen = {name: tensor for name, tensor in tensors.items() if name in own}
    shapes = {name: (tuple(own[name].shape), tuple(tensor.shape)) for name, tensor in chosen.items()}
    require_exact(
        type(model).__name__,
        source,
        missing,
        unexpected,
        [(name, wanted, found) for name, (wanted, found) in shapes.items() if wanted != found],
    )
    for name, group in twins.items():
        if name not in chosen:
            twin = next((other for other in group if other in chosen), None)
            if twin is not None:
                chosen[name] = chosen[twin]
    for name in chosen:
        if type(own[name]) not in (torch.Tensor, torch.nn.Parameter):
            chosen[name] = parameter_like(own[name], chosen[name])
    model.load_state_dict(chosen, strict=False, assign=True)
    _tie(model, twins)
    empty = [name for name, buffer in model.named_buffers() if buffer.is_meta and name not in chosen]
    if empty:
        raise CheckpointError(
            f"{source}: {type(model).__name__} computes {', '.join(empty)} from its parameters, which are not there "
            "while it is built: construct it normally and use load_state_dict"
        )


def require_exact(
    model: str,
    source: str,
    missing: list[str],
    unexpected: list[str],
    mis_shaped: list[tuple[str, tuple[int, ...], tuple[int, ...]]],
) -> None:
    """Raise one error that lists every name that does not match, or do nothing.

    Args:
        mis_shaped: name, the shape that the network has, the shape that the checkpoint has.
    """
    if not (missing or unexpected or mis_shaped):
        return
    shapes = [f"{name} is {found}, expected {wanted}" for name, wanted, found in mis_shaped]
    lists = (("missing", missing), ("unexpected", unexpected), ("mis-shaped", shapes))
    faults = "; ".join(f"{what} ({len(names)}): {', '.join(sorted(names))}" for what, names in lists if names)
    raise CheckpointError(
        f"{source}: the tensors do not match {model}: {faults}: check that class, config and checkpoint belong together"
    )


def _has_base(model_class: type, module: str, name: str) -> bool:
    return any(base.__module__ == module and base.__name__ == name for base in model_class.__mro__)


def _patterns(model: torch.nn.Module, attribute: str) -> re.Pattern[str] | None:
    patterns = getattr(model, attribute, None)
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns)) if patterns else None


def _tied_names(model: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    """Name -> all names of the same parameter, for parameters of more than one name."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: tuple(group) for group in names.values() if len(group) > 1 for name in group}


def _tie(model: torch.nn.Module, twins: Mapping[str, tuple[str, ...]]) -> None:
    for first, *others in dict.fromkeys(twins.values()):
        parameter = model.get_parameter(first)
        for other in others:
            path, _, name = other.rpartition(".")
            twin = model.get_parameter(other)
            if twin.data_ptr() != parameter.data_ptr() and not torch.equal(twin, parameter):
                raise CheckpointError(
                    f"{type(model).__name__}: {first} and {other} are one parameter, the checkpoint holds two values"
                )
            setattr(model.get_submodule(path), name, parameter)
