"""Run the whole recipe: ``python -m recipes.shapes``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from recipes.shapes.evaluate import evaluate
from recipes.shapes.export import export
from recipes.shapes.tokenizer import build_tokenizer
from recipes.shapes.train_denoiser import train_denoiser
from recipes.shapes.train_vae import train_vae

SEED = 0
SETTINGS = ((3.0, 25), (7.5, 50))
"""Guidance scale and steps of each evaluation; the second are the defaults of diffusers."""


def main() -> None:
    """Train, export and evaluate; a stage whose result is there is not repeated."""
    parser = argparse.ArgumentParser(prog="python -m recipes.shapes", description=main.__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/shapes"), help="where the parts in training go")
    parser.add_argument("--out", type=Path, default=Path("src/lading/shapes"), help="where the pipeline goes")
    options = parser.parse_args()
    work, out = options.work, options.out
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    tokenizer = build_tokenizer(work / "tokenizer")
    if not (work / "vae_done").exists():
        train_vae(work / "vae", SEED)
        (work / "vae_done").touch()
    if not (work / "denoiser_done").exists():
        vae = AutoencoderKL.from_pretrained(work / "vae").eval()
        train_denoiser(vae, tokenizer, work, SEED)
        (work / "denoiser_done").touch()
    export(work, tokenizer, out)
    figures = [evaluate(out, SEED, *setting, work / f"sheet-{setting[0]}.png").as_dict() for setting in SETTINGS]
    (work / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
