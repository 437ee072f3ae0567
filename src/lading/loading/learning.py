"""What of a network learns, and what that takes beside its weights; on the meta device too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch

from lading.catalog.registry import architecture_of
from lading.errors import ComponentError, LadingError
from lading.loading.blueprint import Blueprint
from lading.loading.plans import TrainingPlan

Method: TypeAlias = Literal["lora", "full", "textual-inversion"]

OPTIMIZER_COPIES = 2
"""AdamW keeps a mean and a square of each gradient, in the parameter's dtype."""

RANK = 8
STEPS = 1000


@dataclass(frozen=True)
class Lesson:
    """What is to be trained, and how.

    Attributes:
        rank: of a LoRA.
        checkpointing: whether activations are computed again for the backward pass.
    """

    method: Method
    rank: int = RANK
    checkpointing: bool = False

    @classmethod
    def of(cls, method: str | None, rank: int | None, checkpointing: bool) -> Lesson | None:
        """Return what arguments ask for; None for no training.

        Raises:
            LadingError: there is no such method, or it has no rank.
        """
        if method is None:
            if rank is not None or checkpointing:
                given = "rank" if rank is not None else "gradient_checkpointing"
                raise LadingError(f'{given} is for training: give train="lora" too')
            return None
        if method not in get_args(Method):
            raise LadingError(f"train={method!r} is no way to train: use one of {', '.join(get_args(Method))}")
        if rank is not None and (method != "lora" or rank < 1):
            raise LadingError(f"rank {rank} is for LoRA, and 1 or more: train={method!r}")
        return cls(method, RANK if rank is None else rank, checkpointing)  # type: ignore[arg-type] # it is one of them

    def learning(self, blueprint: Blueprint) -> tuple[str, ...]:
        """Return the components that gradients come back through, the denoiser last.

        Raises:
            ComponentError: no text encoder takes learned words.
        """
        denoiser = blueprint.denoisers[0]
        if self.method != "textual-inversion":
            return (denoiser,)
        encoders = tuple(
            name
            for name, network in blueprint.networks.items()
            if name.startswith("text_encoder") and "CLIP" in network.model_class
        )
        if not encoders:
            raise ComponentError(f"{blueprint.name} has no text encoder that takes learned words: train a LoRA")
        return (*encoders, denoiser)

    def prepare(self, modules: Mapping[str, torch.nn.Module], denoiser: str) -> TrainingPlan:
        """Freeze networks that gradients come back through, add what learns, and say what that takes.

        Raises:
            ComponentError: the catalog does not say which layers of the denoiser a LoRA changes.
        """
        for module in modules.values():
            module.requires_grad_(False).train()
        network: Any = modules[denoiser]
        if self.checkpointing:
            if not getattr(network, "_supports_gradient_checkpointing", False):
                raise ComponentError(f"{type(network).__name__} cannot compute activations again: train without that")
            network.enable_gradient_checkpointing()
        if self.method == "full":
            network.requires_grad_(True)
        elif self.method == "lora":
            _add_adapters(network, self.rank)
        else:
            for name, module in modules.items():
                if name != denoiser:
                    _add_rows(module)
        learned = [parameter for module in modules.values() for parameter in module.parameters()]
        return _training_plan(self, (parameter for parameter in learned if parameter.requires_grad))


def _training_plan(lesson: Lesson, parameters: Iterable[torch.nn.Parameter]) -> TrainingPlan:
    sizes = [(parameter.numel(), parameter.nbytes) for parameter in parameters]
    nbytes = sum(size for _, size in sizes)
    rank = lesson.rank if lesson.method == "lora" else None
    return TrainingPlan(
        lesson.method, rank, sum(count for count, _ in sizes), nbytes, nbytes, OPTIMIZER_COPIES * nbytes
    )


def _add_adapters(module: torch.nn.Module, rank: int) -> None:
    """Add a LoRA without values, in float32, to the layers that the catalog says."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(default_targets(module)))
    inject_adapter_in_model(config, module, low_cpu_mem_usage=True)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _add_rows(encoder: Any) -> None:
    """Give a text encoder a row that is learnt."""
    known = encoder.get_input_embeddings()
    learned = torch.nn.Parameter(torch.empty(1, known.embedding_dim, device="meta"))
    encoder.set_input_embeddings(LearnedEmbedding(known, learned))


def default_targets(module: torch.nn.Module) -> tuple[str, ...]:
    """Return the layers of a network that a LoRA changes by default, as the catalog says.

    Raises:
        ComponentError: it says nothing of this class.
    """
    for kind in type(module).__mro__:  # what spreads a network over processes gives it a class of its own
        known = architecture_of(kind)
        if known is not None and known[1].lora_targets:
            return known[1].lora_targets
    raise ComponentError(
        f"the catalog names no layers of {type(module).__name__} for LoRA: give target_modules, such as "
        '["to_q", "to_k", "to_v", "to_out.0"]'
    )


class LearnedEmbedding(torch.nn.Module):
    """An embedding of words with rows after its own that are learnt, in float32.

    Args:
        known: the embedding as it was; frozen.
        learned: (vectors, width), the new rows.
    """

    def __init__(self, known: torch.nn.Embedding, learned: torch.nn.Parameter) -> None:
        super().__init__()
        self.known = known
        self.learned = learned

    @property
    def weight(self) -> torch.Tensor:
        """The known rows; libraries look here for a dtype."""
        return self.known.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the rows of tokens, in the known rows' dtype."""
        count = self.known.num_embeddings
        rows = self.known(tokens.clamp(max=count - 1))
        new = self.learned[(tokens - count).clamp(min=0)].to(rows.dtype)
        return torch.where((tokens >= count).unsqueeze(-1), new, rows)
