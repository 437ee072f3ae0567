"""Sizes in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading import LadingError
from lading.sizes import format_size, parse_size


@given(st.integers(0, 10**15))
def test_a_written_size_reads_back_within_half_a_percent(nbytes: int) -> None:
    assert abs(parse_size(format_size(nbytes)) - nbytes) <= nbytes / 200


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("8GB", 8e9), ("8GiB", 8 * 2**30), ("1.5 kB", 1500), ("7", 7), ("0", 0), ("2T", 2e12), ("3 MiB", 3 * 2**20)],
)
def test_decimal_and_binary_units(text: str, nbytes: float) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("bad", ["", "GB", "-1", "8XB", "1e3", "8 GB GB", -1, True, 1.5, None])
def test_what_is_no_size_is_a_clear_error(bad: object) -> None:
    with pytest.raises(LadingError, match="is not a size"):
        parse_size(bad)  # type: ignore[arg-type] # on purpose
