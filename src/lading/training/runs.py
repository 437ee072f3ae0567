"""A whole run, from a model and a folder of pictures to a file that diffusers loads.

The order keeps the peak low: what can be told from configs first; then each encoder alone, for what the store lacks;
then the denoiser in its final dtype, frozen, with adapters in float32; then the optimizer; then the checkpoint.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lading.checkpoint.dtypes import named_dtype
from lading.errors import LadingError
from lading.loading.components import load_component, load_components
from lading.loading.pipeline import default_device
from lading.training.checkpoints import Checkpoints, State
from lading.training.dataset import read_folder
from lading.training.denoising import Denoiser
from lading.training.durable import write_json
from lading.training.freezing import TrainingTable
from lading.training.logs import StepLog, Watchers
from lading.training.loop import Run, begin, train
from lading.training.objectives import make_objective
from lading.training.parts import examine
from lading.training.preparation import Framed, Preparation, Prepared, PreparedExamples, frame_examples
from lading.training.rehearsal import DenoiserRules, Extent
from lading.training.settings import Settings
from lading.training.store import Store, fingerprint
from lading.training.subjects import Subject, full_subject, holding, lora_subject, word_subject
from lading.training.validation import Validation
from lading.training.watching import Watcher
from lading.training.world import ALONE, World


@dataclass(frozen=True)
class Outcome:
    """What a run gave.

    Attributes:
        files: the weights; the first is what diffusers loads.
        steps: that were made in all.
        table: of what was trained and what it took.
    """

    files: tuple[Path, ...]
    steps: int
    table: TrainingTable


def train_model(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: Settings | None = None,
    resume: bool = False,
    cache: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    variant: str | None = None,
    watcher: Watcher | None = None,
    world: World = ALONE,
) -> Outcome:
    """Train a LoRA, a denoiser or a word on a folder of pictures with captions.

    Args:
        model: a folder in the diffusers layout, "shapes" for the model that ships here, or a Hugging Face id.
        data: pictures, with captions in metadata.jsonl, metadata.csv or a .txt beside each.
        out: where weights, checkpoints, logs and grids go.
        resume: go on from the newest checkpoint in `out`, to the same weights as without interruption.
        cache: where encoded captions and pictures are kept; None is "cache" in `out`. Several runs may share one.

    Raises:
        ComponentError: the model cannot be trained; nothing has been loaded.
        MemoryLimitError: the limit is too small.
        LadingError: the data, a setting or the folder is not usable, or training went wrong; the message says where.
    """
    settings, out = settings or Settings(), Path(out)
    parts = examine(model, revision, variant)
    objective = make_objective(load_component(parts.folder, "scheduler"), settings)
    examples = read_folder(Path(data))
    if settings.token is not None and not any(settings.token in example.caption for example in examples):
        raise LadingError(
            f"{data}: none of the {len(examples)} captions has the word {settings.token!r}: write it there"
        )
    _require_fresh(out, resume)
    watcher = Watchers([watcher or Watcher(), *([StepLog(out / "log.jsonl")] if world.leads else [])])
    framed = frame_examples(examples, parts, settings, watcher)
    device = torch.device(settings.device or default_device())
    dtype = named_dtype(settings.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    out.mkdir(parents=True, exist_ok=True)
    preparation = Preparation(parts, settings, dtype, device, Store(Path(cache or out / "cache")), watcher)
    with world.in_turn():
        rules, prepared, validation = _prepare(preparation, framed)
    subject = _subject(preparation)
    watcher.tell(str(subject.table))
    network, parameters = world.joined(subject.denoiser, subject.parameters)
    state = begin(parameters, settings, dtype, device.type)
    facts = {"denoiser": preparation.denoiser, "data": _digest(prepared)}
    checkpoints = Checkpoints(out / "checkpoints", settings.keep_checkpoints, settings, facts)
    if resume:
        checkpoints.restore(state)
    elif world.leads:
        write_json(out / "settings.json", settings.to_json(), durable=False)

    def validate(step: int) -> None:
        if validation is not None and world.leads:
            with averaged(subject, state):
                validation.draw(_drawing_parts(preparation, subject), out / "samples" / f"step-{step:06d}.png")

    run = Run(
        settings,
        Denoiser(network, rules, preparation.timesteps, dtype, device),
        PreparedExamples(prepared, preparation.store, settings.caption_dropout, subject.conditions),
        objective,
        world,
        watcher,
        device,
        validate,
    )
    watcher.begin(state.step, settings.steps)
    train(run, state, checkpoints)
    files = subject.save(out, state.result) if world.leads else ()
    world.wait()
    return Outcome(files, state.step, subject.table)


def _require_fresh(out: Path, resume: bool) -> None:
    """Refuse to begin where another run has left checkpoints, and to go on where none has."""
    began = any((out / "checkpoints").glob("step-*"))
    if began and not resume:
        raise LadingError(f"{out}: a run has left checkpoints here: go on with --resume, or choose another folder")
    if resume and not began:
        raise LadingError(f"{out}: there is no checkpoint to go on from: start without --resume")


def _prepare(preparation: Preparation, framed: list[Framed]) -> tuple[DenoiserRules, list[Prepared], Validation | None]:
    settings = preparation.settings
    validation = None
    if settings.validation_prompts:
        facts = {"model": preparation.model, "dtype": str(preparation.dtype)}
        size = framed[0].extent
        extent = Extent(size.height, size.width, size.num_frames)
        validation = Validation(preparation.parts, settings, extent, preparation.store, facts)
    rules, prepared = preparation.prepare(framed, validation)
    gc.collect()
    return rules, prepared, validation


def _subject(preparation: Preparation) -> Subject:
    parts, settings = preparation.parts, preparation.settings
    dtype, device = preparation.dtype, preparation.device
    if settings.method == "lora":
        return lora_subject(parts, settings, dtype, device)
    if settings.method == "full":
        return full_subject(parts, settings, dtype, device)
    return word_subject(parts, settings, dtype, device, preparation.rehearsal())


@contextmanager
def averaged(subject: Subject, state: State) -> Iterator[None]:
    """Hold the weights that the run would give now in the network, in eval mode, and put the others back."""
    training = subject.denoiser.training
    subject.denoiser.eval()
    try:
        with holding(subject.parameters, state.result):
            yield
    finally:
        subject.denoiser.train(training)


def _drawing_parts(preparation: Preparation, subject: Subject) -> dict[str, object]:
    """What drawing needs: the denoiser as it is, and the parts that are not in memory while training."""
    parts = preparation.parts
    loaded = load_components(
        parts.folder,
        [parts.autoencoder.name, "scheduler"],
        torch_dtype={"default": preparation.dtype},
        device=preparation.device,
    )
    return {**loaded, **(subject.encoders or {}), parts.denoiser.name: subject.denoiser}


def _digest(prepared: list[Prepared]) -> str:
    return fingerprint(examples=[[*each.latents, each.conditions] for each in prepared])
