"""What lading tells people and programs: texts, tables and JSON; what happened in a run, as a page and as a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lading.lazy import lazy_names

if TYPE_CHECKING:
    from lading.report.checkpoint import checkpoint_json, checkpoint_text, printable
    from lading.report.explanation import Explanation, explain
    from lading.report.recording import Recording, record, recorded_to
    from lading.report.run import Run

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "lading.report.checkpoint": ("checkpoint_json", "checkpoint_text", "printable"),
        "lading.report.explanation": ("Explanation", "explain"),
        "lading.report.recording": ("Recording", "record", "recorded_to"),
        "lading.report.run": ("Run",),
    },
)

__all__ = [
    "Explanation",
    "Recording",
    "Run",
    "checkpoint_json",
    "checkpoint_text",
    "explain",
    "printable",
    "record",
    "recorded_to",
]
