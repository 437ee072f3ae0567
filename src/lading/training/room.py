"""Training under a memory limit: what is trained stays in memory with all that belongs to it, and the rest streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

from lading.errors import MemoryLimitError
from lading.loading.learning import OPTIMIZER_COPIES
from lading.memory import Manager
from lading.memory.trace import trace
from lading.sizes import format_size
from lading.training.loop import Run, largest_call
from lading.training.settings import Settings


def bytes_beside(parameters: Iterable[torch.Tensor], settings: Settings) -> int:
    """Return what training keeps of parameters beside their values, in bytes.

    That is the optimizer's states, an average, and gradients where a step has several forwards: those of one forward
    are among what is traced.
    """
    copies = OPTIMIZER_COPIES + (settings.ema is not None) + (settings.batch_size * settings.accumulate > 1)
    return copies * sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def require_room(network: torch.nn.Module, limit: int, settings: Settings, run: Run | None = None) -> None:
    """Refuse to train the whole of a network where a limit does not hold it.

    Args:
        network: in float32, on the meta device: nothing has been read.
        run: whose largest call tells what activations take; None asks for weights, gradients and states alone.

    Raises:
        MemoryLimitError: with the smallest limit that would do.
    """
    parameters = list(network.parameters())
    held = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    kept = held + bytes_beside(parameters, settings)
    if run is None:
        activation = held  # of which gradients are the least part
    else:
        with run.denoiser.precision():
            activation = trace(network, (), largest_call(run), device=run.device, backward=True).activation_bytes
    minimum = kept + activation
    if minimum > limit:
        raise MemoryLimitError(
            f"{type(network).__name__} cannot be trained whole in {format_size(limit)}: its weights and the states of "
            f"the optimizer take {format_size(kept)} in float32, and gradients and activations at least "
            f"{format_size(activation)}: give it at least {minimum} bytes, or train a LoRA, under which it is streamed",
            minimum,
        )


def keep_within(manager: Manager, limit: int, kept: int, run: Run) -> None:
    """Put a streamed network under what a limit leaves it beside other bytes, planned for its largest call.

    Raises:
        MemoryLimitError: with the smallest limit of the run that would do; no weight of the network has been read.
    """
    with run.denoiser.precision():
        manager.expect(kwargs=largest_call(run))
    try:
        manager.set_limit(max(limit - kept, 0))
    except MemoryLimitError as error:
        minimum = error.minimum + kept
        raise MemoryLimitError(
            f"{type(manager.module).__name__} cannot be trained in {format_size(limit)}: what is trained keeps "
            f"{format_size(kept)} beside the {format_size(error.minimum)} that a step needs: give it at least "
            f"{minimum} bytes, a smaller batch or resolution, or gradient checkpointing",
            minimum,
        ) from error


def bytes_saved(compute: Callable[[], object]) -> int:
    """Return what a computation keeps for its way back, without parameters, in bytes."""
    found: dict[int, int] = {}
    with _saving(found):
        compute()
    return sum(found.values())


@contextmanager
def _saving(found: dict[int, int]) -> Iterator[None]:
    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield
