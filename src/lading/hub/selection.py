"""Which files of a repository in the diffusers layout are needed: one format and one variant of each weight."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from lading.checkpoint.files import WEIGHT_STEMS, WEIGHT_SUFFIXES

_SHARD = r"-\d{5}-of-\d{5}"
_OTHER_FRAMEWORKS = (".msgpack", ".h5", ".onnx", ".onnx_data", ".tflite", ".ot")


def wanted_files(
    names: Iterable[str], components: Iterable[str] | None, variant: str | None, subfolder: str | None = None
) -> list[str]:
    """Choose what to fetch from a repository in the diffusers layout.

    Of each component's weights one format, one variant and one name is chosen, as the loader chooses them: safetensors
    before torch files, the variant where the component has it, shards before a single file, and of other names only
    what has no usual one beside it. Everything else in the component's folder is small and wanted.

    Args:
        components: the subfolders needed; None for all.
        subfolder: where in the repository the pipeline lies; None for its top.

    >>> wanted_files(["model_index.json", "vae/config.json", "vae/x.bin", "vae/x.safetensors", "big.ckpt"], None, None)
    ['model_index.json', 'vae/config.json', 'vae/x.safetensors']
    """
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    chosen = None if components is None else set(components)
    names = list(names)
    wanted: set[str] = set()
    weights: dict[str, list[str]] = {}
    for name in names:
        inside = name.removeprefix(prefix)
        component, _, file = inside.partition("/")
        if not name.startswith(prefix):
            continue
        if inside == "model_index.json":
            wanted.add(name)
        elif file and (chosen is None or component in chosen):
            if is_weight(name) and "/" not in file:
                weights.setdefault(component, []).append(name)
            elif not is_weight(name) and not name.endswith(_OTHER_FRAMEWORKS):
                wanted.add(name)
    for files in weights.values():
        wanted.update(_usual(wanted_weights(files, variant)))
    return [name for name in names if name in wanted]


def components_of(index: Mapping[str, object]) -> list[str]:
    """Return the components that a `model_index.json` names: those with a library and a class.

    >>> components_of({"_class_name": "P", "vae": ["diffusers", "V"], "safety_checker": [None, None], "steps": 4})
    ['vae']
    """
    return [
        name
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and value and None not in value
    ]


def wanted_weights(names: Iterable[str], variant: str | None) -> list[str]:
    """Choose the weights of one folder, indices included: of the variant where it is there, safetensors first.

    >>> wanted_weights(["a.bin", "a.fp16.safetensors", "a.safetensors", "config.json"], "fp16")
    ['a.fp16.safetensors']
    """
    weights = [name for name in names if is_weight(name)]
    of_variant = [name for name in weights if variant is not None and variant_of(name) == variant]
    plain = of_variant or [name for name in weights if variant_of(name) is None]
    return [name for name in plain if ".safetensors" in name] or plain


def _usual(weights: list[str]) -> list[str]:
    usual = [name for name in weights if _stem(name) in WEIGHT_STEMS] or weights
    sharded = {_stem(name) for name in usual if ".index." in name}
    return [name for name in usual if _stem(name) not in sharded or ".index." in name or re.search(_SHARD, name)]


def _stem(name: str) -> str:
    """The "model" of model.safetensors, model.fp16-00001-of-00002.safetensors and model.safetensors.index.json."""
    return re.sub(_SHARD, "", PurePosixPath(name).name).split(".")[0]


def is_weight(name: str) -> bool:
    """Tell whether a file holds weights, or is the index of such."""
    return name.endswith(WEIGHT_SUFFIXES) or ".index." in PurePosixPath(name).name


def variant_of(name: str) -> str | None:
    """The "fp16" of model.fp16.safetensors, of its shards, and of model.safetensors.index.fp16.json."""
    parts = PurePosixPath(name).name.split(".")
    middle = [part for part in parts[1:-1] if part not in ("safetensors", "bin", "index")]
    return re.sub(_SHARD, "", middle[0]) if middle else None
