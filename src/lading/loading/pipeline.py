"""`load_pipeline`: a folder, or files that are recognised, to a pipeline of diffusers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lading.checkpoint.dduf_file import is_dduf
from lading.collection import collection_put_off
from lading.errors import ComponentError
from lading.hub import ModelConfig, model_folder
from lading.loading.ahead import read_ahead
from lading.loading.configs import read_config

if TYPE_CHECKING:
    import torch

    from lading.loading.components import Components


@collection_put_off()
def load_pipeline(
    model: str | os.PathLike[str] | ModelConfig | Iterable[str | os.PathLike[str] | ModelConfig],
    torch_dtype: torch.dtype | str | Mapping[str, torch.dtype | str | None] | None = None,
    device: str | torch.device | Mapping[str, str | torch.device | None] | None = None,
    revision: str | None = None,
    variant: str | None = None,
    memory_limit: int | str | None = None,
    host_memory_limit: int | str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    base: str | os.PathLike[str] | None = None,
    vram_limit: float | str | None = None,
) -> Any:
    """Load a whole pipeline and return a plain diffusers pipeline, of the class that `model_index.json` names.

    Its `lading_components` attribute holds the `Components`, whose `print` shows the loading path.

    Files are recognised as `identify` recognises them, and the pipeline is the one that their networks make. Where it
    has several networks of one class, names in paths and in the file tell them apart, else their order. Tokenizers and
    schedulers come from folders among what is given, else from the published pipeline on the hub.

    Args:
        model: a folder in the diffusers layout, "shapes" for the model that ships here, or a Hugging Face id; a DDUF
            file; or a file that holds the networks, or a list of files, folders of components, and `ModelConfig`s that
            name such.
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
        base: for files: the folder or the id of a pipeline in the diffusers layout, which they replace networks of. It
            says what pipeline it is and has what is not given, other networks included.
        vram_limit: in GiB, or such as "8GB", up to which layers are prepared where a `ModelConfig` says where its
            weights are; see `enable_vram_management`.

    Raises:
        DownloadError: the hub could not give it.
        ComponentError: the folder is no pipeline, or a component, its class or its files are missing; files make no
            pipeline that is known, or several.
        IdentificationError: a file holds no network that is known.
        CheckpointError: weights are damaged, unsafe, or do not match their config.
        MemoryLimitError: the limit is too small; no weight has been read.

    >>> import lading
    >>> type(lading.load_pipeline("shapes")).__name__
    'StableDiffusionPipeline'
    """
    if device == "auto":
        device = default_device()
    if not isinstance(model, (str, os.PathLike)) or (Path(model).is_file() and not is_dduf(model)):
        given = [model] if isinstance(model, (str, os.PathLike, ModelConfig)) else list(model)
        _require_none("files have none", revision=revision, variant=variant, subfolder=subfolder)
        from lading.loading.assembly import assemble_pipeline

        pipeline, components = assemble_pipeline(
            given, base, torch_dtype, device, memory_limit, host_memory_limit, vram_limit, token
        )
        return _finished(pipeline, components)
    _require_none(f"{os.fspath(model)} is no file", base=base, vram_limit=vram_limit)
    folder = model_folder(model, None, revision, variant, subfolder, token)
    index = read_config(folder / "model_index.json")
    if memory_limit is None and host_memory_limit is None:
        read_ahead(folder, variant)
    from lading.loading.components import load_components  # torch and diffusers: the disk works meanwhile
    from lading.loading.loaders import find_pipeline_class
    from lading.loading.network import construction

    pipeline_class = find_pipeline_class(index.get("_class_name"), folder / "model_index.json")
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
        pipeline = pipeline_class.from_pretrained(str(folder), **absent, **components)
    return _finished(pipeline, components)


def _require_none(why: str, **options: object) -> None:
    for option, value in options.items():
        if value is not None:
            raise ComponentError(f"load_pipeline: {option}={value!r}: {why}: leave it out")


def _finished(pipeline: Any, components: Components) -> Any:
    """Give a pipeline its records, and tell networks that take turns in which order they will."""
    from lading.memory.adoption import expect_turns

    pipeline.lading_components = components
    expect_turns(pipeline)
    return pipeline


def default_device() -> str:
    """Return the accelerator that torch finds, else "cpu"."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else accelerator.type
