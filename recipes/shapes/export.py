"""Put the trained parts together as one pipeline folder in half precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from recipes.shapes.train_denoiser import build_scheduler


def export(parts: Path, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the pipeline to ``folder``, replacing what was there except its README.

    The text encoder's config asks for float32: transformers loads in the dtype that a config states, diffusers in
    float32, and a pipeline needs both in one.
    """
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(parts / "vae"),
        unet=UNet2DConditionModel.from_pretrained(parts / "unet"),
        text_encoder=CLIPTextModel.from_pretrained(parts / "text_encoder"),
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    tokenizer.backend_tokenizer.no_truncation()  # it remembers how training called it
    tokenizer.backend_tokenizer.no_padding()
    for name in ("vae", "unet", "text_encoder"):
        getattr(pipeline, name).half()
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.save_pretrained(fresh)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(parts / "tokenizer" / name, fresh / "tokenizer" / name)
    config_file = fresh / "text_encoder" / "config.json"
    config = json.loads(config_file.read_text())
    config["dtype"] = str(torch.float32).removeprefix("torch.")
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file in fresh.rglob("config.json"):
        content = json.loads(file.read_text())
        content.pop("_name_or_path", None)
        file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    for file in fresh.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
    if (folder / "README.md").is_file():
        shutil.copy(folder / "README.md", fresh / "README.md")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
