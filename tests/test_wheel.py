"""The wheel holds everything that `lading generate` needs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent


def test_a_wheel_installed_alone_draws_a_picture(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, check=True, cwd=ROOT, capture_output=True)
    (wheel,) = tmp_path.glob("lading-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(site)
    assert {"lading/py.typed", "lading/shapes/model_index.json"} <= names
    assert {"lading/catalog/signatures.json", "lading/catalog/known_hashes.json"} <= names
    assert not any(name.startswith(("tests", "recipes", "bench")) for name in names)
    program = "import lading, sys; assert lading.__file__.startswith(sys.argv.pop(1)), lading.__file__;"
    program += "from lading.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, str(site), "generate", "a blue square on a gray background"]
    subprocess.run(
        [*command, "--steps", "2", "--device", "cpu", "--out", "picture.png"],
        check=True,
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    with Image.open(tmp_path / "picture.png") as image:
        assert image.size == (64, 64)
