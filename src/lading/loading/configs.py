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


CONFIG_FILES = (
    "config.json",
    "scheduler_config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
"""What tells that a folder holds a component, and what the class is where no `model_index.json` says it."""


def class_from_config(folder: Path) -> tuple[str, str] | None:
    """Return the library and the class that a component's own config names; None where none does.

    Raises:
        ComponentError: a config cannot be read.
    """
    for file in (folder / config for config in CONFIG_FILES):
        if not file.is_file():
            continue
        config = read_config(file)
        if isinstance(config.get("_class_name"), str):
            return "diffusers", config["_class_name"]
        architectures = config.get("architectures")
        for found in (
            architectures[0] if isinstance(architectures, list) and architectures else None,
            config.get("tokenizer_class"),
            config.get("image_processor_type"),
            config.get("feature_extractor_type"),
            config.get("processor_class"),
        ):
            if isinstance(found, str):
                return "transformers", found
        if file.name == "tokenizer_config.json":
            return "transformers", "AutoTokenizer"
    return None


def processor_class(folder: Path) -> str | None:
    """Return the class of the processor in a folder, which stands in the configs of what it is made of.

    Raises:
        ComponentError: a config cannot be read.
    """
    files = (folder / name for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"))
    found = (read_config(file).get("processor_class") for file in files if file.is_file())
    return next((name for name in found if isinstance(name, str)), None)


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
