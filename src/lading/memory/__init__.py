"""Where a module's weights are while it computes and while it does not: under a limit, or by rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lading.lazy import lazy_names

if TYPE_CHECKING:
    from lading.memory.adoption import PipelineManager, manage
    from lading.memory.layers import (
        AutoWrappedLinear,
        AutoWrappedModule,
        AutoWrappedNonRecurseModule,
        ReplaceableLayer,
    )
    from lading.memory.management import Manager, manager_of
    from lading.memory.plan import ModulePlan
    from lading.memory.statistics import Statistics
    from lading.memory.wrapping import enable_vram_management

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "lading.memory.adoption": ("PipelineManager", "manage"),
        "lading.memory.layers": (
            "AutoWrappedLinear",
            "AutoWrappedModule",
            "AutoWrappedNonRecurseModule",
            "ReplaceableLayer",
        ),
        "lading.memory.management": ("Manager", "manager_of"),
        "lading.memory.plan": ("ModulePlan",),
        "lading.memory.statistics": ("Statistics",),
        "lading.memory.wrapping": ("enable_vram_management",),
    },
)

__all__ = [
    "AutoWrappedLinear",
    "AutoWrappedModule",
    "AutoWrappedNonRecurseModule",
    "Manager",
    "ModulePlan",
    "PipelineManager",
    "ReplaceableLayer",
    "Statistics",
    "enable_vram_management",
    "manage",
    "manager_of",
]
