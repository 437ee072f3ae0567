"""Modules under a memory limit: traced, planned, streamed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lading.lazy import lazy_names

if TYPE_CHECKING:
    from lading.memory.manage import Manager, ModulePlan, manager_of

__getattr__, __dir__ = lazy_names(__name__, {"lading.memory.manage": ("Manager", "ModulePlan", "manager_of")})

__all__ = ["Manager", "ModulePlan", "manager_of"]
