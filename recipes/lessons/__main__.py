"""Teach the ``shapes`` model something, and judge it before and after: ``python -m recipes.lessons METHOD``."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lading
from recipes.lessons.pictures import SEED, WORD, Question, write_gems, write_teal
from recipes.shapes.check import look
from recipes.shapes.evaluate import save_sheet
from recipes.shapes.pictures import evaluation_captions

KNOWN = 100
"""Of the model card's held-out prompts, those that are asked again."""

BATCH = 20
COMMANDS: dict[str, list[str]] = {
    "lora": [
        "--steps",
        "400",
        "--batch-size",
        "32",
        "--learning-rate",
        "2e-3",
        "--rank",
        "16",
        "--caption-dropout",
        "0.1",
    ],
    "full": ["--steps", "250", "--batch-size", "32", "--learning-rate", "3e-4", "--caption-dropout", "0.1"],
    "textual-inversion": [
        *("--steps", "200", "--batch-size", "8", "--learning-rate", "2e-2", "--weight-decay", "0"),
        *("--token", WORD, "--initial-word", "purple", "--vectors", "2"),
    ],
}
USUAL = ["--schedule", "cosine", "--warmup", "20", "--seed", str(SEED)]


def main() -> None:
    """Draw the data, judge, train, judge again, and print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m recipes.lessons", description=main.__doc__)
    parser.add_argument("method", choices=list(COMMANDS))
    parser.add_argument("--work", type=Path, default=Path("build/lessons"))
    options = parser.parse_args()
    torch.set_num_threads(2)
    work = options.work / options.method
    shutil.rmtree(work, ignore_errors=True)
    questions = (write_gems if options.method == "textual-inversion" else write_teal)(work / "data")
    known = [Question(str(caption), caption.triple) for caption in evaluation_captions(SEED)[:KNOWN]]
    base = lading.load_pipeline("shapes")
    figures: dict[str, Any] = {
        "before": judge(base, questions, work / "before.png"),
        "known_before": judge(base, known),
    }
    command = [sys.executable, "-m", "lading", "train", options.method, "shapes", "--data", str(work / "data")]
    start = time.monotonic()
    subprocess.run([*command, "--out", str(work / "out"), *COMMANDS[options.method], *USUAL], check=True)
    figures["training_seconds"] = round(time.monotonic() - start, 1)
    taught = load_taught(options.method, work / "out")
    figures |= {"after": judge(taught, questions, work / "after.png"), "known_after": judge(taught, known)}
    (work / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def load_taught(method: str, out: Path) -> Any:
    """Load what a run gave with the means of diffusers."""
    if method == "full":
        return lading.load_pipeline(out / "pipeline")
    pipeline = lading.load_pipeline("shapes")
    if method == "lora":
        pipeline.load_lora_weights(out)
    else:
        pipeline.load_textual_inversion(out)
    return pipeline


def judge(pipeline: Any, questions: Sequence[Question], sheet: Path | None = None) -> float:
    """Return the share of questions whose picture shows what it is to show; question n is drawn from seed n."""
    pipeline.set_progress_bar_config(disable=True)
    pictures: list[Any] = []
    for start in range(0, len(questions), BATCH):
        numbers = range(start, min(start + BATCH, len(questions)))
        pictures += pipeline(
            [questions[number].prompt for number in numbers],
            guidance_scale=3.0,
            num_inference_steps=25,
            generator=[torch.Generator().manual_seed(number) for number in numbers],
        ).images
    right = []
    for question, picture in zip(questions, pictures, strict=True):
        sight, triple = look(np.asarray(picture.convert("RGB"))), question.triple
        right.append((sight.shape, sight.colour, sight.background) == (triple.shape, triple.colour, triple.background))
    if sheet is not None:
        save_sheet([np.asarray(picture.convert("RGB")) for picture in pictures], right, sheet)
    return sum(right) / len(right)


if __name__ == "__main__":
    main()
