"""The model that ships: it draws what a prompt says that training never showed, by a judge that knows no training."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from lading import load_pipeline, shipped_model
from recipes.shapes import check
from recipes.shapes.check import UNKNOWN, Sight, look
from recipes.shapes.pictures import (
    BACKGROUNDS,
    COLOURS,
    EVALUATION_PROMPTS,
    RADII,
    SHAPES,
    Triple,
    draw,
    evaluation_captions,
    split_triples,
)
from recipes.shapes.tokenizer import WORDS, build_tokenizer

SEED = 0


def test_the_judge_is_right_about_every_drawn_combination() -> None:
    triples = [Triple(*words) for words in product(SHAPES, COLOURS, BACKGROUNDS)]
    for size in RADII:
        pictures = draw(triples, [size] * len(triples), np.random.default_rng(11))
        for triple, picture in zip(triples, pictures, strict=True):
            assert look(picture) == Sight(triple.shape, triple.colour, triple.background, size)


def test_the_judge_knows_nothing_of_junk() -> None:
    generator = np.random.default_rng(12)
    noise = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    blank = np.full((64, 64, 3), 250, dtype=np.uint8)
    blobs = blank.copy()
    blobs[5:20, 5:20] = blobs[40:55, 40:55] = (220, 40, 40)
    line = blank.copy()
    line[30:33, 4:60] = (220, 40, 40)
    for junk in (noise, blank, blobs, line):
        assert look(junk).shape == UNKNOWN


def test_the_judge_shares_nothing_with_the_drawing() -> None:
    assert check.__file__ is not None
    assert "import recipes" not in (source := Path(check.__file__).read_text())
    assert "from recipes" not in source


def test_training_never_sees_a_held_out_combination_but_every_pair_of_words() -> None:
    split = split_triples(SEED)
    assert not set(split.training) & set(split.held_out)
    assert len(split.training) + len(split.held_out) == len(SHAPES) * len(COLOURS) * len(BACKGROUNDS)
    pairs = Counter((triple.shape, triple.colour) for triple in split.training)
    assert len(pairs) == len(SHAPES) * len(COLOURS)
    captions = evaluation_captions(SEED)
    assert len(set(map(str, captions))) == EVALUATION_PROMPTS
    assert {caption.triple for caption in captions} <= set(split.held_out)


def test_the_shipped_tokenizer_is_the_recipes_and_any_text_has_tokens(tmp_path: Path) -> None:
    built = build_tokenizer(tmp_path)
    shipped = load_pipeline("shapes").tokenizer
    texts = ["a small red circle on a white background", "An ORANGE zebra, 3 times!", "ほげ", "", *WORDS]
    for text in texts:
        assert shipped(text).input_ids == built(text).input_ids
    assert all(len(shipped(word).input_ids) == 3 for word in WORDS)


def test_the_folder_is_small_in_half_precision_and_in_the_standard_layout() -> None:
    files = [file for file in shipped_model().rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 12_000_000
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as weights:
                assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118
    folders = {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    assert {file.relative_to(shipped_model()).parts[0] for file in files} == folders | {"model_index.json", "README.md"}


def test_it_draws_what_held_out_prompts_say() -> None:
    """A sample of the 200 prompts of the model card; the recipe's evaluation judges them all."""
    pipeline = load_pipeline("shapes")
    pipeline.set_progress_bar_config(disable=True)
    captions = evaluation_captions(SEED)[:30]
    images = pipeline(
        [str(caption) for caption in captions],
        guidance_scale=3.0,
        num_inference_steps=25,
        generator=[torch.Generator().manual_seed(number) for number in range(len(captions))],
    ).images
    right = sum(
        (sight.shape, sight.colour, sight.background)
        == (caption.triple.shape, caption.triple.colour, caption.triple.background)
        for caption, sight in zip(captions, (look(np.asarray(image)) for image in images), strict=True)
    )
    assert right >= 27
