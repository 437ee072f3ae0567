"""One timed load of a checkpoint: `python -m bench.loaders WAY FOLDER DTYPE`.

The clock runs from the call of a library until every page of every tensor has been touched, so that nothing is won by
putting reads off. Modules are imported before; the peak of memory is the process's growth meanwhile, and counts pages
of mapped files.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from bench.disk import raw_reader

Load: TypeAlias = Callable[[], Iterable[torch.Tensor]]

PAGE_BYTES = 4096


@dataclass(frozen=True)
class Way:
    """A way to load a checkpoint.

    Attributes:
        prepare: imports what it takes, and returns the load itself; given the checkpoint's folder and the dtype wanted.
        copies: whether it always takes as much memory as the checkpoint.
        peer: whether it needs the peers' environment.
    """

    prepare: Callable[[Path, torch.dtype], Load]
    copies: bool = False
    peer: bool = False


def raw(folder: Path, dtype: torch.dtype) -> Load:
    """The disk's own rate; keeps nothing."""
    read = raw_reader(_files(folder))

    def load() -> Iterable[torch.Tensor]:
        read()
        return []

    return load


def safetensors(folder: Path, dtype: torch.dtype) -> Load:
    """Read with safetensors, then cast."""
    from safetensors.torch import load_file

    return lambda: [tensor.to(dtype) for file in _files(folder) for tensor in load_file(file).values()]


def fastsafetensors(folder: Path, dtype: torch.dtype) -> Load:
    """Read with fastsafetensors, then cast."""
    from fastsafetensors import fastsafe_open  # type: ignore[import-not-found] # in the peers' environment

    def load() -> Iterable[torch.Tensor]:
        with fastsafe_open([str(file) for file in _files(folder)], device="cpu", nogds=True) as tensors:
            return [tensors.get_tensor(name).to(dtype) for name in tensors.keys()]  # noqa: SIM118 - not a mapping

    return load


def runai(folder: Path, dtype: torch.dtype) -> Load:
    """Read with the Run:ai model streamer, then cast."""
    from runai_model_streamer import SafetensorsStreamer  # type: ignore[import-not-found] # in the peers' environment

    def load() -> Iterable[torch.Tensor]:
        with SafetensorsStreamer() as streamer:
            streamer.stream_files([str(file) for file in _files(folder)])
            return [tensor.to(dtype) for _, tensor in streamer.get_tensors()]

    return load


def lading_state_dict(folder: Path, dtype: torch.dtype) -> Load:
    """Read, and cast on the way, with lading."""
    from lading import load_state_dict

    return lambda: load_state_dict(folder, torch_dtype=dtype).values()


def lading_model(folder: Path, dtype: torch.dtype) -> Load:
    """Load a network with lading."""
    from lading import load_model

    _build_empty(folder)
    return lambda: _weights(load_model(_model_class(folder), folder, torch_dtype=dtype))


def from_pretrained(folder: Path, dtype: torch.dtype) -> Load:
    """Load a network with its own library, diffusers or transformers."""
    _build_empty(folder)
    return lambda: _weights(_model_class(folder).from_pretrained(folder, dtype=dtype))


def accelerate(folder: Path, dtype: torch.dtype) -> Load:
    """Load an empty network of diffusers with accelerate."""
    from accelerate import (  # type: ignore[import-untyped] # it has no types
        init_empty_weights,
        load_checkpoint_and_dispatch,
    )

    _build_empty(folder)
    source = next(folder.glob("*.index.json"), None) or _files(folder)[0]

    def load() -> Iterable[torch.Tensor]:
        with init_empty_weights():
            model = _build(folder)
        return _weights(load_checkpoint_and_dispatch(model, str(source), device_map={"": "cpu"}, dtype=dtype))

    return load


def diffusers_pipeline(folder: Path, dtype: torch.dtype) -> Load:
    """Load a pipeline with diffusers."""
    from diffusers import DiffusionPipeline

    return _of_pipeline(lambda model: DiffusionPipeline.from_pretrained(model, dtype=dtype).components, folder)


def lading_components(folder: Path, dtype: torch.dtype) -> Load:
    """Load all components with lading."""
    from lading import load_components

    return _of_pipeline(lambda model: load_components(model, torch_dtype=dtype), folder)


RAW = "raw reads"
SAFETENSORS = "safetensors load_file"
WAYS = {
    RAW: Way(raw),
    SAFETENSORS: Way(safetensors),
    "fastsafetensors": Way(fastsafetensors, copies=True, peer=True),
    "Run:ai model streamer": Way(runai, copies=True, peer=True),
    "lading.load_state_dict": Way(lading_state_dict),
    "accelerate load_checkpoint_and_dispatch": Way(accelerate),
    "diffusers from_pretrained": Way(from_pretrained),
    "transformers from_pretrained": Way(from_pretrained),
    "lading.load_model": Way(lading_model),
    "DiffusionPipeline.from_pretrained": Way(diffusers_pipeline),
    "lading.load_components": Way(lading_components),
}


def main() -> None:
    """Load once, and print the seconds, the growth of memory and the size of the result in bytes."""
    name, folder, dtype = sys.argv[1:]
    Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process goes, and no other
    load = WAYS[name].prepare(Path(folder), getattr(torch, dtype))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _memory("VmRSS")
    start = time.perf_counter()
    tensors = list(load())
    for tensor in tensors:
        tensor.reshape(-1).view(torch.uint8)[::PAGE_BYTES].sum()
    seconds = time.perf_counter() - start
    result = sum(tensor.nbytes for tensor in tensors)
    print(json.dumps({"seconds": seconds, "peak": _memory("VmHWM") - before, "result": result}))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def _weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in model.parameters()]


def _build_empty(folder: Path) -> None:
    """Build the network without memory, for the sake of what that imports."""
    with torch.device("meta"):
        _build(folder)


def _of_pipeline(load: Callable[[Path], Mapping[str, Any]], folder: Path) -> Load:
    """Load the model that ships first, which is a pipeline of the same classes, for the sake of what that imports."""
    from lading import shipped_model

    load(shipped_model())
    names = sorted(file.parent.name for file in _files(folder))

    def load_all() -> Iterable[torch.Tensor]:
        components = load(folder)
        return [weight for name in names for weight in _weights(components[name])]

    return load_all


def _build(folder: Path) -> Any:
    model_class = _model_class(folder)
    if hasattr(model_class, "load_config"):
        return model_class.from_config(model_class.load_config(folder))
    return model_class(model_class.config_class.from_pretrained(folder))


def _model_class(folder: Path) -> Any:
    """The class that a config names, of diffusers or transformers."""
    config = json.loads((folder / "config.json").read_text())
    if "_class_name" in config:
        import diffusers

        return getattr(diffusers, config["_class_name"])
    import transformers

    return getattr(transformers, config["architectures"][0])


def _memory(field: str) -> int:
    """A figure of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    main()
