"""Tables as text. Plain Python."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def format_table(columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Collection[str] = ()) -> str:
    """Write rows under their columns' names, aligned: numbers to the right, the rest to the left.

    >>> print(format_table(["name", "bytes"], [["unet", "1.72 GB"], ["vae", "167 MB"]], {"bytes"}))
    name    bytes
    unet  1.72 GB
    vae    167 MB
    """
    lines = [columns, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if name in numeric else cell.ljust(width)
            for name, cell, width in zip(columns, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )
