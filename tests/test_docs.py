"""The examples in the README and the site run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lading.catalog import registry

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [
    pytest.param(example, id=f"{page.name}-{number}")
    for page in PAGES
    for number, example in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_the_documentation_runs(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lading.loading.loaders._LOADERS", dict(_loaders()))
    for held in ("_registered", "_classes"):
        monkeypatch.setattr(registry, held, dict(getattr(registry, held)))
    try:
        exec(compile(example, "example", "exec"), {"__name__": "example"})
    finally:
        registry.registered_signatures.cache_clear()
        registry.registered_lora_bases.cache_clear()


def _loaders() -> dict[str, Any]:
    from lading.loading import loaders

    return loaders._LOADERS


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name in navigation
