"""A load of over a second shows bytes, rate and component on a terminal, a shorter one nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lading.loading import progress
from lading.loading.progress import loading_bar, show_progress
from tests.conftest import run_in_terminal

SLOW = """
import sys, time
from lading.loading.progress import loading_bar, show_progress
seconds, enabled = float(sys.argv[1]), sys.argv[2] == "shown"
show_progress(enabled)
with loading_bar("unet", 2_000_000_000) as unet, loading_bar("vae", 1_000_000_000) as vae:
    for _ in range(10):
        time.sleep(seconds / 10)
        for on_bytes in (unet, vae):
            if on_bytes is not None:
                on_bytes(100_000_000)
"""


def test_a_load_of_over_a_second_shows_its_component_bytes_and_rate() -> None:
    status, shown = run_in_terminal([sys.executable, "-c", SLOW, "2", "shown"])
    assert status == 0
    assert b"unet" in shown
    assert b"vae" in shown
    assert b"/2.0 GB" in shown
    assert b"MB/s" in shown


@pytest.mark.parametrize("arguments", [["0.2", "shown"], ["2", "hidden"]])
def test_a_short_load_and_one_that_nobody_wants_to_see_show_nothing(arguments: list[str]) -> None:
    assert run_in_terminal([sys.executable, "-c", SLOW, *arguments]) == (0, b"")


def test_nothing_is_counted_where_there_is_no_terminal() -> None:
    with loading_bar("unet", 100) as on_bytes:
        assert on_bytes is None
    assert progress._display is None


LOAD = """
import sys
from lading.loading import progress
progress.PATIENCE_SECONDS = 0.0
import lading
lading.load_components("shapes", ["unet", "vae"])
"""


def test_components_show_their_names(tmp_path: Path) -> None:
    status, shown = run_in_terminal([sys.executable, "-c", LOAD])
    assert status == 0
    assert b"unet" in shown or b"vae" in shown
    show_progress(True)
