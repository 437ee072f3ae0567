"""Modules under a memory limit: traced, planned, streamed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lading.lazy import lazy_names

if TYPE_CHECKING:
    from lading.memory.adoption import PipelineManager, manage
    from lading.memory.management import Manager, manager_of
    from lading.memory.plan import ModulePlan
    from lading.memory.statistics import Statistics

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "lading.memory.adoption": ("PipelineManager", "manage"),
        "lading.memory.management": ("Manager", "manager_of"),
        "lading.memory.plan": ("ModulePlan",),
        "lading.memory.statistics": ("Statistics",),
    },
)

__all__ = ["Manager", "ModulePlan", "PipelineManager", "Statistics", "manage", "manager_of"]
