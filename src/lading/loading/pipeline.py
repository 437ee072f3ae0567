"""`load_pipeline`: a folder to the pipeline class that its `model_index.json` names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lading.errors import ComponentError
from lading.hub import model_folder
from lading.loading.ahead import read_ahead
from lading.loading.configs import read_config

if TYPE_CHECKING:
    import torch


def load_pipeline(
    model: str | os.PathLike[str],
    torch_dtype: torch.dtype | str | Mapping[str, torch.dtype | str | None] | None = None,
    device: str | torch.device | Mapping[str, str | torch.device | None] | None = None,
    revision: str | None = None,
    variant: str | None = None,
    memory_limit: int | str | None = None,
    host_memory_limit: int | str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
) -> Any:
    """Load a whole pipeline and return the plain diffusers pipeline that `model_index.json` names.

    Its `lading_components` attribute holds the `Components`, whose `print` shows the loading path.

    Args:
        model: a folder in the diffusers layout, "shapes" for the model that ships here, or a Hugging Face id.
        torch_dtype: one for all networks, or a mapping from component names with a "default"; None does what each
            class's own `from_pretrained` does.
        device: one for all, or a mapping; None leaves everything on the CPU and touches no device, "auto" is the
            accelerator that torch finds, else the CPU.
        revision: branch, tag or commit, where the model is on a hub.
        variant: such as "fp16" for weights in "model.fp16.safetensors".
        memory_limit: bytes, or such as "8GB", for weights and activations of all components, which take turns: what
            does not fit is streamed from the checkpoint.
        host_memory_limit: the same for the host's memory; on the CPU the smaller of the two counts.
        subfolder: where in the folder or the repository the pipeline lies.
        token: for private and gated models on a hub; None uses the one that is saved.

    Raises:
        DownloadError: the hub could not give it.
        ComponentError: the folder is no pipeline, or a component, its class or its files are missing.
        CheckpointError: weights are damaged, unsafe, or do not match their config.
        MemoryLimitError: the limit is too small; no weight has been read.

    >>> import lading
    >>> type(lading.load_pipeline("shapes")).__name__
    'StableDiffusionPipeline'
    """
    folder = model_folder(model, None, revision, variant, subfolder, token)
    index = read_config(folder / "model_index.json")
    if memory_limit is None and host_memory_limit is None:
        read_ahead(folder, variant)
    from lading.loading.components import load_components  # torch and diffusers: the disk works meanwhile
    from lading.loading.network import construction
    from lading.memory.adoption import expect_turns

    found = pipeline_class(index.get("_class_name"), folder)
    if device == "auto":
        device = default_device()
    components = load_components(
        folder,
        torch_dtype=torch_dtype,
        device=device,
        variant=variant,
        memory_limit=memory_limit,
        host_memory_limit=host_memory_limit,
    )
    absent = {name: None for name, value in index.items() if isinstance(value, list) and name not in components}
    with construction():
        pipeline = found.from_pretrained(str(folder), **absent, **components)
    pipeline.lading_components = components
    if memory_limit is not None or host_memory_limit is not None:
        expect_turns(pipeline)
    return pipeline


def default_device() -> str:
    """Return the accelerator that torch finds, else "cpu"."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else accelerator.type


def pipeline_class(name: object, folder: os.PathLike[str]) -> Any:
    """Return the class of diffusers that a `model_index.json` names.

    Raises:
        ComponentError: diffusers has none of this name.
    """
    import diffusers

    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise ComponentError(
            f"{folder}: model_index.json names the pipeline {name!r}, which diffusers {diffusers.__version__} "
            "does not have: upgrade diffusers, or load the components alone"
        )
    return found
