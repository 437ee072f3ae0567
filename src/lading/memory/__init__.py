"""Where a module's weights are while it computes and while it does not: under a limit, or by rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lading.lazy import lazy_names

if TYPE_CHECKING:
    from lading.memory.layers import (
        AutoWrappedLinear,
        AutoWrappedModule,
        AutoWrappedNonRecurseModule,
        ReplaceableLayer,
    )
    from lading.memory.manage import Manager, ModulePlan, manager_of
    from lading.memory.wrapping import enable_vram_management

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "lading.memory.layers": (
            "AutoWrappedLinear",
            "AutoWrappedModule",
            "AutoWrappedNonRecurseModule",
            "ReplaceableLayer",
        ),
        "lading.memory.manage": ("Manager", "ModulePlan", "manager_of"),
        "lading.memory.wrapping": ("enable_vram_management",),
    },
)

__all__ = [
    "AutoWrappedLinear",
    "AutoWrappedModule",
    "AutoWrappedNonRecurseModule",
    "Manager",
    "ModulePlan",
    "ReplaceableLayer",
    "enable_vram_management",
    "manager_of",
]
