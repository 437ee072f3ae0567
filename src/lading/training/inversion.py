"""Textual inversion: the meaning of a new word is learnt, and nothing else changes.

Source: Gal et al. 2022, arXiv:2208.01618.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lading.errors import ComponentError, LadingError
from lading.training.durable import write_tensors

_KEYS = {1: (None,), 2: ("clip_l", "clip_g")}
"""What the embedding of each text encoder is called in a file; of a single one, as the word."""


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


def teach_word(pipeline: Any, token: str, initial_word: str | None, vectors: int = 1) -> dict[str, torch.nn.Parameter]:
    """Give each tokenizer of a pipeline a new word, and its text encoder rows for it that can be trained.

    Args:
        token: the word, of which the tokenizers know nothing.
        initial_word: whose meaning it begins with; None begins with the mean of all.
        vectors: of the word.

    Raises:
        ComponentError: the pipeline takes no learned words.
        LadingError: the word is known already, or the initial word is none or several tokens.
    """
    if not hasattr(pipeline, "load_textual_inversion"):
        raise ComponentError(f"{type(pipeline).__name__} takes no learned words: train a LoRA")
    learned = {}
    for name, encoder, tokenizer in _pairs(pipeline):
        words = [token, *(f"{token}_{number}" for number in range(1, vectors))]
        if tokenizer.add_tokens(words) != len(words):
            raise LadingError(f"{token!r} is a word that {name}'s tokenizer knows: choose a new one, such as '<thing>'")
        embedding = encoder.get_input_embeddings()
        first = embedding.weight.detach().float()
        if initial_word is None:
            start = first.mean(0)
        else:
            tokens = tokenizer(initial_word, add_special_tokens=False).input_ids
            if len(tokens) != 1:
                raise LadingError(f"{initial_word!r} is {len(tokens)} tokens for {name}: begin with a word of one")
            start = first[tokens[0]]
        parameter = torch.nn.Parameter(start.repeat(vectors, 1))
        encoder.set_input_embeddings(LearnedEmbedding(embedding, parameter))
        learned[name] = parameter
    return learned


def save_word(file: Path, token: str, learned: Mapping[str, torch.Tensor]) -> Path:
    """Write a learned word as safetensors, as `pipeline.load_textual_inversion` of diffusers reads it."""
    keys = _KEYS[len(learned)]
    tensors = {key or token: tensor for key, tensor in zip(keys, learned.values(), strict=True)}
    write_tensors(file, tensors)
    return file


def _pairs(pipeline: Any) -> list[tuple[str, Any, Any]]:
    """Text encoders, by name, that take learned words, with their tokenizers."""
    pairs = []
    for name in sorted(name for name in pipeline.components if name.startswith("text_encoder")):
        encoder, tokenizer = (
            pipeline.components[name],
            pipeline.components.get(name.replace("text_encoder", "tokenizer")),
        )
        if encoder is not None and "CLIP" in type(encoder).__name__:
            pairs.append((name, encoder, tokenizer))
    if not pairs or len(pairs) not in _KEYS:
        raise ComponentError(f"{type(pipeline).__name__} has no text encoder that takes learned words: train a LoRA")
    return pairs
