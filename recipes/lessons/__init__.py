"""Lessons: what the ``shapes`` model does not know is taught with ``lading train``, and judged from pixels."""
