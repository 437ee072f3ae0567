"""From what a user calls a model to a local folder in the diffusers layout."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from lading.checkpoint.files import WEIGHT_SUFFIXES
from lading.errors import ComponentError, DownloadError

SHIPPED = "shapes"
"""The name of the model that ships with the package."""

_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def shipped_model() -> Path:
    """Return the folder of the text-to-image model that ships with the package, in the diffusers layout.

    >>> import lading
    >>> (lading.shipped_model() / "model_index.json").is_file()
    True
    """
    return Path(__file__).resolve().parent.parent / SHIPPED


def model_folder(
    model: str | os.PathLike[str],
    components: Iterable[str] | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> Path:
    """Return the local folder of a model, fetching what is missing when it is the id of a hub.

    Args:
        model: a folder, "shapes" for the shipped model, or a Hugging Face id such as "org/name".
        components: the subfolders needed; None for all that `model_index.json` names.
        revision: branch, tag or commit on the hub.
        variant: such as "fp16": these weights are fetched where a component has them.

    Raises:
        ComponentError: no such folder, or a revision of a local folder.
        DownloadError: the hub could not give it.
    """
    folder = shipped_model() if model == SHIPPED else Path(model)
    if folder.is_dir():
        if revision is not None:
            raise ComponentError(f"{folder}: a local folder has no revision {revision!r}: leave it out")
        return folder
    text = os.fspath(model)
    if _MODEL_ID.fullmatch(text):
        return _fetch(text, components, revision, variant)
    raise ComponentError(
        f"{text}: no such folder: give a folder in the diffusers layout, the id of a model on the hub (org/name) "
        f"or {SHIPPED!r}, the model that ships with lading"
    )


def wanted_files(names: Iterable[str], components: Iterable[str] | None, variant: str | None) -> list[str]:
    """Choose what to fetch from a repository in the diffusers layout.

    Of each component's weights one format and one variant is chosen: safetensors before torch files, the variant
    where the component has it. Everything else in the component's folder is small and wanted.

    >>> wanted_files(["model_index.json", "vae/config.json", "vae/x.bin", "vae/x.safetensors", "big.ckpt"], None, None)
    ['model_index.json', 'vae/config.json', 'vae/x.safetensors']
    """
    chosen = None if components is None else set(components)
    wanted: list[str] = []
    by_folder: dict[str, list[str]] = {}
    for name in names:
        if name == "model_index.json":
            wanted.append(name)
        elif "/" in name and (chosen is None or name.split("/")[0] in chosen):
            by_folder.setdefault(name.rpartition("/")[0], []).append(name)
    for files in by_folder.values():
        weights = [name for name in files if _is_weight(name)]
        wanted += [name for name in files if name not in weights and not name.endswith((".msgpack", ".h5", ".onnx"))]
        of_variant = [name for name in weights if variant is not None and _variant(name) == variant]
        plain = of_variant or [name for name in weights if _variant(name) is None]
        wanted += [name for name in plain if ".safetensors" in name] or plain
    return wanted


def _is_weight(name: str) -> bool:
    return name.endswith(WEIGHT_SUFFIXES) or ".index." in PurePosixPath(name).name


def _variant(name: str) -> str | None:
    """The "fp16" of model.fp16.safetensors, of its shards, and of model.safetensors.index.fp16.json."""
    parts = PurePosixPath(name).name.split(".")
    middle = [part for part in parts[1:-1] if part not in ("safetensors", "bin", "index")]
    return re.sub(r"-\d{5}-of-\d{5}$", "", middle[0]) if middle else None


def _fetch(model_id: str, components: Iterable[str] | None, revision: str | None, variant: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def failed(what: str) -> DownloadError:
        at = f" at revision {revision}" if revision else ""
        return DownloadError(f"{model_id}{at}: {what}")

    try:
        if HF_HUB_OFFLINE:
            return Path(snapshot_download(model_id, revision=revision, local_files_only=True))
        info = HfApi().model_info(model_id, revision=revision)
        files = wanted_files([sibling.rfilename for sibling in info.siblings or ()], components, variant)
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=files))
    except IncompleteSnapshotError as error:
        return Path(error.snapshot_path)  # offline, with some components fetched before; the others say what they miss
    except GatedRepoError:
        raise failed("the model is gated: accept its terms on the hub and log in (`hf auth login`)") from None
    except RevisionNotFoundError:
        raise failed("the hub has the model but no such revision") from None
    except RepositoryNotFoundError:
        raise failed("the hub has no such model, or it is private: check the name, or log in") from None
    except LocalEntryNotFoundError:
        raise failed("not in the local cache, and the hub may not be asked: go online once to fetch it") from None
    except HfHubHTTPError as error:
        raise failed(f"the hub answered {error}") from None
    except Exception as error:  # noqa: BLE001 - the hub's client lets its transport's own errors through
        raise failed(f"the hub cannot be reached ({error}): check the network, or give a local folder") from None
