"""The JSON files that describe a pipeline and its components. Plain Python."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lading.errors import ComponentError


def read_config(file: Path) -> dict[str, Any]:
    """Read a JSON config.

    Raises:
        ComponentError: it is missing or not a JSON object.
    """
    try:
        config = json.loads(file.read_bytes())
    except OSError as error:
        raise ComponentError(f"{file}: the config cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ComponentError(f"{file}: the config is not valid JSON ({error}): fetch it again") from None
    if not isinstance(config, dict):
        raise ComponentError(f"{file}: the config is not a JSON object: fetch it again")
    return config


def read_model_index(folder: Path) -> dict[str, tuple[str, str]]:
    """Return the components that a pipeline folder names: name -> (library, class name).

    Components that the file leaves empty, such as a safety checker that is not there, are left out.

    Raises:
        ComponentError: there is no `model_index.json`, or it is not valid.
    """
    file = folder / "model_index.json"
    return read_index(read_config(file), file)


def read_index(index: Mapping[str, Any], source: object) -> dict[str, tuple[str, str]]:
    """Return the components that the content of a `model_index.json` names; see `read_model_index`.

    Args:
        source: of the content, for the message.

    Raises:
        ComponentError: it is not valid.
    """
    components: dict[str, tuple[str, str]] = {}
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list):
            continue
        if len(value) != 2 or not all(part is None or isinstance(part, str) for part in value):
            raise ComponentError(f"{source}: component {name!r} is not [library, class]")
        if value[0] is not None and value[1] is not None:
            components[name] = (value[0], value[1])
    return components
