"""What is recorded: a pipeline or a module, as it is when the recording begins and when it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lading.errors import ComponentError, LadingError, ShapeError
from lading.latents import LatentFormat
from lading.loading.blueprint import Blueprint, Network
from lading.loading.components import weights_of
from lading.loading.record import LoadRecord
from lading.memory.management import Manager, manager_of


class Subject:
    """A pipeline or a module that is recorded.

    Attributes:
        title: its class.
        components: name -> object, also those without weights.
        modules: those that compute.
        managers: of those that are under a limit.
        records: how each component was loaded, where lading loaded it.
        device: that computes.
        held: bytes of each module's weights where it computes, at first.
        calls: of each managed module, before.
    """

    def __init__(self, target: Any) -> None:
        """Look at it as it is now.

        Raises:
            LadingError: it has no modules.
        """
        self.title = type(target).__name__
        found = {self.title: target} if isinstance(target, torch.nn.Module) else getattr(target, "components", {})
        self.components: Mapping[str, Any] = {name: part for name, part in found.items() if part is not None}
        self.modules = {name: part for name, part in self.components.items() if isinstance(part, torch.nn.Module)}
        if not self.modules:
            raise LadingError(f"{self.title} is no module, and no pipeline with modules: there is nothing to record")
        self.managers: Mapping[str, Manager] = {
            name: manager_of(part) for name, part in self.modules.items() if "lading_manager" in part.__dict__
        }
        records = getattr(getattr(target, "lading_components", None), "records", ())
        self.records: Mapping[str, LoadRecord] = {record.name: record for record in records}
        self.device = self._device()
        self.held = {name: self._held(name) for name in self.modules}
        self.calls = {name: manager.stats().calls for name, manager in self.managers.items()}

    @property
    def limit(self) -> int | None:
        """Of the memory where it computes; None without one."""
        return next((manager.limits.memory for manager in self.managers.values()), None)

    def finder(self) -> Callable[[Any], str | None]:
        """Return what tells the part that an event's owner is, or is a file of; None for what is not the subject's."""
        owners = {id(component): name for name, component in self.components.items()}
        files = {file.resolve(): name for name, record in self.records.items() for file in record.files}
        files |= {file.resolve(): name for name, manager in self.managers.items() for file in manager.files}
        find_file = cache(lambda file: files.get(file.resolve()))
        return lambda owner: find_file(owner) if isinstance(owner, Path) else owners.get(id(owner))

    def latents(self) -> LatentFormat | None:
        """Return the format of its latents, as far as the catalog and the configs tell it."""
        configs = {name: getattr(module, "config", None) for name, module in self.modules.items()}
        networks = {
            name: Network(class_of(self.modules[name]), config)
            for name, config in configs.items()
            if isinstance(config, Mapping)
        }
        try:
            return Blueprint(self.title, None, networks, "folder", {}).latent_format()
        except (ComponentError, ShapeError):  # of a denoiser that nobody knows; or whoever calls the pipeline is told
            return None

    def _device(self) -> str:
        """Of the managed modules, else of most bytes."""
        for manager in self.managers.values():
            return str(manager.device)
        nbytes = Counter[str]()
        for module in self.modules.values():
            _, size, _, device = weights_of(module)
            nbytes[device or "cpu"] += size
        return nbytes.most_common(1)[0][0]

    def _held(self, name: str) -> int:
        if name in self.managers:
            return self.managers[name].held_bytes
        _, nbytes, _, device = weights_of(self.modules[name])
        return nbytes if device == self.device else 0


def class_of(component: Any) -> str:
    """Return the library and the class, as `model_index.json` writes them."""
    return f"{type(component).__module__.partition('.')[0]}.{type(component).__name__}"
