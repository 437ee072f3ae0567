"""Packages that lading is measured against and does not depend on, in a virtual environment that shares its torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version

from bench.runs import BUILD

_FOLDER = BUILD / "peers"
_NEEDS = {"diffsynth": ("einops", "ftfy", "imageio", "modelscope", "pandas")}
"""Named, as the package's own list has torchvision, which PyPI builds for CUDA alone: beside a torch for the CPU it
breaks transformers and diffusers, which import it where they find it."""
_VERSIONS = """
import sys
from importlib.metadata import PackageNotFoundError, version
for name in sys.argv[1:]:
    try:
        print(name, version(name))
    except PackageNotFoundError:
        print(name, "could not be installed")
"""


def peers_python(*names: str) -> str:
    """Return the interpreter of the peers' environment, where packages of PyPI are installed that are not yet there.

    One that cannot be installed is tried again by the next call; who imports it meanwhile says that it is not there.
    """
    python, record = str(_FOLDER / "bin" / "python"), _FOLDER / "installed.json"
    shared, torch = sysconfig.get_path("purelib"), f"torch=={version('torch')}"
    made_for = [sys.version, shared, torch]
    made = json.loads(record.read_text()) if record.is_file() else {}
    if made.get("for") != made_for:
        made = {"for": made_for, "names": []}
        _make(shared, torch)
    made["names"] += [name for name in names if name not in made["names"] and _install(python, name)]
    record.write_text(json.dumps(made))
    return python


def peers_versions(python: str, *names: str) -> str:
    """One line on the packages that an interpreter has."""
    found = subprocess.run([python, "-c", _VERSIONS, *names], check=True, capture_output=True, text=True)
    return ", ".join(found.stdout.splitlines())


def _make(shared: str, torch: str) -> None:
    shutil.rmtree(_FOLDER, ignore_errors=True)
    venv.create(_FOLDER, with_pip=True)
    own = next(_FOLDER.glob("lib/python*/site-packages"))
    (own / "shared.pth").write_text(f"{shared}\n")
    (_FOLDER / "constraints.txt").write_text(torch)


def _install(python: str, name: str) -> bool:
    pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    pip += ["--constraint", str(_FOLDER / "constraints.txt")]
    commands = [[*pip, "--no-deps", name], [*pip, *_NEEDS[name]]] if name in _NEEDS else [[*pip, name]]
    return all(subprocess.run(command).returncode == 0 for command in commands)
