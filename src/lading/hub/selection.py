"""Which files of a repository in the diffusers layout are needed: one format and one variant of each weight."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from lading.checkpoint.files import WEIGHT_SUFFIXES

_OTHER_FRAMEWORKS = (".msgpack", ".h5", ".onnx", ".onnx_data", ".tflite", ".ot")


def wanted_files(
    names: Iterable[str], components: Iterable[str] | None, variant: str | None, subfolder: str | None = None
) -> list[str]:
    """Choose what to fetch from a repository in the diffusers layout.

    Of each component's weights one format and one variant is chosen: safetensors before torch files, the variant
    where the component has it. Everything else in the component's folder is small and wanted.

    Args:
        components: the subfolders needed; None for all.
        subfolder: where in the repository the pipeline lies; None for its top.

    >>> wanted_files(["model_index.json", "vae/config.json", "vae/x.bin", "vae/x.safetensors", "big.ckpt"], None, None)
    ['model_index.json', 'vae/config.json', 'vae/x.safetensors']
    """
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    chosen = None if components is None else set(components)
    wanted: list[str] = []
    by_folder: dict[str, list[str]] = {}
    for name in names:
        inside = name.removeprefix(prefix)
        if not name.startswith(prefix):
            continue
        if inside == "model_index.json":
            wanted.append(name)
        elif "/" in inside and (chosen is None or inside.split("/")[0] in chosen):
            by_folder.setdefault(name.rpartition("/")[0], []).append(name)
    for files in by_folder.values():
        wanted += [name for name in files if not is_weight(name) and not name.endswith(_OTHER_FRAMEWORKS)]
        wanted += wanted_weights(files, variant)
    return wanted


def wanted_weights(names: Iterable[str], variant: str | None) -> list[str]:
    """Choose the weights of one folder, indices included: of the variant where it is there, safetensors first.

    >>> wanted_weights(["a.bin", "a.fp16.safetensors", "a.safetensors", "config.json"], "fp16")
    ['a.fp16.safetensors']
    """
    weights = [name for name in names if is_weight(name)]
    of_variant = [name for name in weights if variant is not None and variant_of(name) == variant]
    plain = of_variant or [name for name in weights if variant_of(name) is None]
    return [name for name in plain if ".safetensors" in name] or plain


def is_weight(name: str) -> bool:
    """Tell whether a file holds weights, or is the index of such."""
    return name.endswith(WEIGHT_SUFFIXES) or ".index." in PurePosixPath(name).name


def variant_of(name: str) -> str | None:
    """The "fp16" of model.fp16.safetensors, of its shards, and of model.safetensors.index.fp16.json."""
    parts = PurePosixPath(name).name.split(".")
    middle = [part for part in parts[1:-1] if part not in ("safetensors", "bin", "index")]
    return re.sub(r"-\d{5}-of-\d{5}$", "", middle[0]) if middle else None
