"""Loaders that lading does not depend on, in a virtual environment of their own that shares this one's torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv

from bench.runs import BUILD

PEERS = ("fastsafetensors", "runai-model-streamer")
_FOLDER = BUILD / "peers"
_VERSIONS = (
    "import sys; from importlib.metadata import version; print(*(f'{n} {version(n)}' for n in sys.argv[1:]), sep=', ')"
)


def peers_python() -> str | None:
    """Return the interpreter that has the peers, or None where PyPI is out of reach; the first call installs them."""
    python, made_for = str(_FOLDER / "bin" / "python"), _FOLDER / "made-for.txt"
    shared = sysconfig.get_path("purelib")
    wanted = "\n".join((sys.version, shared, *PEERS))
    if made_for.is_file() and made_for.read_text() == wanted:
        return python
    shutil.rmtree(_FOLDER, ignore_errors=True)
    venv.create(_FOLDER, with_pip=True)
    own = next(_FOLDER.glob("lib/python*/site-packages"))
    (own / "shared.pth").write_text(f"{shared}\n")
    install = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *PEERS]
    if subprocess.run(install).returncode:
        return None
    made_for.write_text(wanted)
    return python


def peers_versions(python: str) -> str:
    """One line on the peers that an interpreter has."""
    return subprocess.run([python, "-c", _VERSIONS, *PEERS], check=True, capture_output=True, text=True).stdout.strip()
