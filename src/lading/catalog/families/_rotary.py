"""How the width of a head is divided among the axes of its rotary embedding; shapes do not tell it."""

from __future__ import annotations


def three_axes(head: int) -> tuple[int, int, int]:
    """Return frame, height and width in the proportions of every published model, 16, 56, 56 of 128; all even.

    >>> three_axes(128), three_axes(64)
    ((16, 56, 56), (8, 28, 28))
    """
    side = head * 7 // 16 // 2 * 2
    return head - 2 * side, side, side
