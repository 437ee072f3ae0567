"""The face of the package: every public name resolves, and importing it costs next to nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lading


def test_every_public_name_resolves() -> None:
    for name in lading.__all__:
        assert getattr(lading, name) is not None
    assert set(dir(lading)) <= set(lading.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = lading.nonsense


def test_importing_lading_imports_no_torch_and_takes_milliseconds() -> None:
    program = (
        "import sys, time; start = time.process_time(); import lading; seconds = time.process_time() - start;"
        "print(seconds, any(name in sys.modules for name in ('torch', 'diffusers', 'numpy', 'click')))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(3)
    ]
    assert all(heavy == "False" for _, heavy in runs)
    assert min(float(seconds) for seconds, _ in runs) < 0.03


def test_errors_are_a_tree_with_one_root() -> None:
    for name in lading.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(lading, name), lading.LadingError)
    assert lading.MemoryLimitError("too small", 7).minimum == 7
