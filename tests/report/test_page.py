"""The report in a real browser: it draws, on a phone too, in the dark too, and nothing that it holds can act."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lading import LadingError
from lading.report.charts import PALETTE, figures
from lading.report.page import check_report, page_of, write_page
from lading.report.run import Call, Memory, Part, Passed, Run, Series, Span
from tests.report.conftest import Recorded

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
browser = pytest.mark.skipif(not BROWSER, reason="no chromium to look at the report with: apt-get install chromium")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=20000",
)
DARK = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")
PHONE = (390, 844)

HOSTILE = (
    '</script><script>document.title="owned"</script><img src=x onerror="document.title=1"><b>&amp; %{x} ' + "x" * 300
)


def look(page: Path, *arguments: str, size: tuple[int, int] = (1200, 2400)) -> str:
    """Open a page in a browser of its own; return what the arguments ask it to print."""
    profile = page.parent / f"profile-{len(list(page.parent.iterdir()))}"
    command = [BROWSER, *QUIET, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", *arguments]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=240, check=True)
    shutil.rmtree(profile, ignore_errors=True)
    return done.stdout


def picture(page: Path, *arguments: str) -> np.ndarray:
    """Take a picture of a page."""
    file = page.with_suffix(".png")
    look(page, f"--screenshot={file}", *arguments, size=(1200, 3600))
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def holds(pixels: np.ndarray, colour: str) -> int:
    """Count the pixels that are about of a colour."""
    wanted = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)])
    return int((np.abs(pixels - wanted).max(axis=2) <= 6).sum())


@pytest.fixture(scope="module")
def page(limited: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    write_page(limited.run, file)
    return file


def hostile_run() -> Run:
    """A run in which every name and text wants to be more than text."""
    tensor = Passed(HOSTILE, (1, 2), HOSTILE, HOSTILE, 8)
    part = Part(HOSTILE, HOSTILE, HOSTILE, (Path(HOSTILE),), (HOSTILE,), 1, 8, HOSTILE, HOSTILE, 1.0)
    call = Call(HOSTILE, HOSTILE, 0.0, 1.0, (tensor,), (tensor,))
    memory = Memory((Series(HOSTILE, (0.0, 1.0), (1, 2)),), None, 10)
    span = Span("compute", HOSTILE, HOSTILE, 0.0, 1.0, 5)
    return Run(HOSTILE, {HOSTILE: HOSTILE}, {HOSTILE: HOSTILE}, 1.0, (part,), (call,), (span,), memory)


@browser
def test_the_report_draws_its_charts_and_says_what_counts(page: Path, limited: Recorded) -> None:
    drawn = look(page, "--dump-dom")
    assert 'data-drawn="3"' in drawn
    text = html.unescape(re.sub(r"<[^>]+>", " ", drawn.partition("<main>")[2]))
    for words in ("From names to objects", "The journey of the latent", "Memory over time", "What took the time"):
        assert words in text
    for label in ("weights of unet", "limit 6.00 MB", "measured, of all", "disk reads", "waiting for weights"):
        assert label in text, "charts have legends"
    for title in ("seconds since the recording began", "memory (MB)", "time of a step"):
        assert title in text, "axes have titles with units"
    for words in limited.run.summary():
        assert words in drawn
    assert drawn.count('class="main-svg"') >= 3


@browser
@pytest.mark.parametrize("run", ["real", "hostile"])
def test_a_phone_shows_it_without_scrolling_sideways(run: str, page: Path, tmp_path: Path) -> None:
    file = page
    if run == "hostile":
        file = tmp_path / "report.html"
        file.write_text(page_of(hostile_run()))
    frame = file.with_name("phone.html")
    frame.write_text(
        f'<meta charset="utf-8"><body style="margin:0"><iframe id="f" src="report.html" style="border:0;'
        f'width:{PHONE[0]}px;height:{PHONE[1]}px"></iframe><p id="wide">not drawn</p><script>'
        "f.onload = () => { const look = setInterval(() => { const page = f.contentDocument.documentElement;"
        'if (!page.dataset.drawn) return; clearInterval(look); f.contentDocument.querySelectorAll("details")'
        '.forEach((one) => { one.open = true; }); wide.textContent = page.scrollWidth + " of " + page.clientWidth;'
        "}, 50); };</script>"
    )
    found = re.search(r'id="wide">(\d+) of (\d+)<', look(frame, "--dump-dom", "--allow-file-access-from-files"))
    assert found is not None, "not drawn"
    assert found[1] == found[2] == str(PHONE[0])


@browser
def test_it_is_light_by_day_and_dark_by_night_with_the_same_charts(page: Path) -> None:
    light, dark = picture(page), picture(page, *DARK)
    assert np.median(light) > 225
    assert np.median(dark) < 60
    for pixels in (light, dark):
        assert holds(pixels, PALETTE[0]) > 5000, "the bars of the steps"
        assert holds(pixels, PALETTE[1]) > 100, "the second part's bars"
    assert holds(light, "#e45756") > 100 and holds(dark, "#e45756") > 100, "the limit"


@browser
def test_a_hostile_name_is_only_text(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page_of(hostile_run()))
    drawn = look(file, "--dump-dom")
    assert 'data-drawn="2"' in drawn, "there were no steps"
    assert "<title>owned" not in drawn and "<title>1<" not in drawn
    assert not re.search(r"<img[^>]*onerror", drawn)
    assert drawn.count("<script") == page_of(hostile_run()).count("<script") == 3
    assert html.escape(HOSTILE, quote=False)[:60] in drawn


def test_a_report_is_one_file_that_asks_nothing_of_any_network(page: Path) -> None:
    text = page.read_text()
    assert 4_000_000 < len(text) < 7_000_000
    before_scripts = text.partition("<script")[0]
    assert "default-src 'none'" in before_scripts
    assert "http" not in re.sub(r"http-equiv", "", before_scripts)
    assert not re.search(r"<(link|iframe|object|embed)\b|\b(src|href)=\"?(http|//)", before_scripts)
    policy = re.search(r"script-src ([^;]*);", before_scripts)
    assert policy is not None
    assert re.fullmatch(r"('sha256-[A-Za-z0-9+/=]+' ?){2}", policy[1]), "its own scripts, by their hashes"
    assert [file.name for file in page.parent.iterdir() if file.suffix == ".html"].count("report.html") == 1


def test_figures_are_figures_of_plotly_and_say_the_run(limited: Recorded) -> None:
    import plotly.graph_objects as go

    found = figures(limited.run)
    assert list(found) == ["memory", "lanes", "steps"]
    for figure in found.values():
        go.Figure(figure)  # which refuses what plotly does not know
    memory = {trace["name"]: trace for trace in found["memory"]["data"]}
    assert max(memory["limit 6.00 MB"]["y"]) == 6.0
    assert limited.run.memory.measured is not None
    assert max(memory["measured, of all"]["y"]) == pytest.approx(limited.run.memory.measured.peak / 1e6)
    waited = next(trace for trace in found["steps"]["data"] if trace["name"] == "waiting for weights")
    assert len(waited["y"]) == len(limited.run.steps)


def test_a_long_run_makes_no_larger_a_report(limited: Recorded) -> None:
    reads = tuple(Span("read", f"f{n}", "unet", n / 1000, n / 1000 + 0.0005, 10) for n in range(100_000))
    many = tuple(float(n) for n in range(100_000))
    memory = replace(limited.run.memory, measured=Series("measured", many, tuple(range(100_000))))
    long = replace(limited.run, spans=reads, seconds=100.0, memory=memory)
    assert len(page_of(long)) < len(page_of(limited.run)) + 300_000
    assert max(next(t for t in figures(long)["memory"]["data"] if t["name"] == "measured, of all")["y"]) > 0.099


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LadingError, match=r"pip install 'lading\[report\]'"):
        check_report(tmp_path / "report.html")
