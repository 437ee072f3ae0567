"""What lading tells people and programs: texts, tables and JSON."""

from lading.report.checkpoint import checkpoint_json, checkpoint_text, printable

__all__ = ["checkpoint_json", "checkpoint_text", "printable"]
