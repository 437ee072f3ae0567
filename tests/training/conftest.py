"""Tiny pipelines on disk, made once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.training import tiny


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a family's tiny pipeline."""
    root = tmp_path_factory.mktemp("models")

    @cache
    def make(name: str) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the libraries say of tiny configs
            return tiny.saved(name, root / name)

    return make


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_data(tmp_path_factory.mktemp("pictures"))
