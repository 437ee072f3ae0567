"""What takes the place of a pipeline's parts while it is run for what it says: they compute nothing and note all."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lading.checkpoint import DiskMap
from lading.checkpoint.files import find_in_folder
from lading.loading.configs import read_config
from lading.loading.loaders import ComponentSpec, resolve_class
from lading.loading.network import build_empty

ASKED_TIMESTEPS = (512.0, 256.0)
"""Powers of two, which every dtype holds exactly."""


def stand_in(spec: ComponentSpec, dtype: torch.dtype, device: torch.device) -> Any:
    """A component without weights that says it is of a dtype and on a device."""
    model_class: Any = resolve_class(spec)
    model = build_empty(model_class, read_config(spec.folder / "config.json"), dtype)
    answers = {"dtype": property(lambda _self: dtype), "device": property(lambda _self: device)}
    model.__class__ = type(model_class.__name__, (model_class,), answers)
    return model


def read_buffers(model: torch.nn.Module, spec: ComponentSpec) -> None:
    """Give a stand-in the statistics that some autoencoders keep in their weights and pipelines read there."""
    names = [name for name, _ in model.named_buffers()]
    if not names:
        return
    stored = DiskMap(list(find_in_folder(spec.folder, "diffusion_pytorch_model", None).files))
    for name in names:
        if name in stored:
            path, _, buffer = name.rpartition(".")
            setattr(model.get_submodule(path), buffer, stored[name])


@contextmanager
def asked_scheduler(pipeline: Any, on_step: Callable[[torch.Tensor], torch.Tensor | None] | None) -> Iterator[None]:
    """Give a pipeline a scheduler with two timesteps that notes what it is given."""
    before = pipeline.scheduler
    scheduler = type(before).from_config(before.config)
    set_timesteps = scheduler.set_timesteps

    def asked(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        scheduler.timesteps = torch.tensor(ASKED_TIMESTEPS).to(scheduler.timesteps)

    asked.__signature__ = inspect.signature(set_timesteps)  # type: ignore[attr-defined] # pipelines look what it takes

    def step(output: torch.Tensor, _timestep: Any, sample: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
        following = on_step(output) if on_step is not None else None
        return (sample if not isinstance(following, torch.Tensor) else following,)

    scheduler.set_timesteps, scheduler.step = asked, step
    pipeline.scheduler = scheduler
    try:
        yield
    finally:
        pipeline.scheduler = before


@contextmanager
def remembered(pipeline: Any, method: str) -> Iterator[None]:
    """Let a method compute once for the same prompts, however often it is called."""
    compute = getattr(pipeline, method)
    known: dict[str, Any] = {}

    def recall(*args: Any, **kwargs: Any) -> Any:
        key = repr((args, sorted(kwargs.items())))
        if key not in known:
            known[key] = compute(*args, **kwargs)
        return known[key]

    setattr(pipeline, method, recall)
    try:
        yield
    finally:
        delattr(pipeline, method)
