"""A whole run, from a model and a folder of pictures to a file that diffusers loads.

The order keeps the peak low: what can be told from configs first; then each encoder alone, for what the store lacks;
then the denoiser in its final dtype, frozen, with adapters in float32; then the optimizer; then the checkpoint.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lading.checkpoint.dtypes import named_dtype
from lading.errors import LadingError
from lading.loading.components import load_by_spec, load_component
from lading.loading.loaders import LoadOptions
from lading.loading.pipeline import default_device
from lading.loading.streamed import limits_on
from lading.memory import manager_of
from lading.training.checkpoints import Checkpoints, State
from lading.training.conditions import Conditions
from lading.training.dataset import read_folder
from lading.training.denoising import Denoiser
from lading.training.durable import write_json
from lading.training.freezing import TrainingTable
from lading.training.logs import StepLog, Watchers
from lading.training.loop import Run, begin, largest_call, train
from lading.training.objectives import make_objective
from lading.training.parts import examine
from lading.training.preparation import Framed, Preparation, Prepared, PreparedExamples, frame_examples
from lading.training.rehearsal import DenoiserRules, Extent
from lading.training.room import bytes_beside, bytes_saved, keep_within, require_room
from lading.training.settings import Settings
from lading.training.store import Store, fingerprint
from lading.training.subjects import (
    Subject,
    empty_denoiser,
    full_subject,
    holding,
    load_denoiser,
    lora_subject,
    word_subject,
)
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
        variant: such as "fp16": weights in "model.fp16.safetensors", of the components that have them.
        world: the processes that train together, as `launched` gives them.

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
    device = torch.device(world.device or settings.device or default_device())
    dtype = named_dtype(settings.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    limits = limits_on(device, settings.memory_limit, settings.host_memory_limit)
    _require_shardable(settings, world)
    if limits is not None and settings.method == "full":
        require_room(empty_denoiser(parts, settings), limits.memory, settings)
    out.mkdir(parents=True, exist_ok=True)
    preparation = Preparation(parts, settings, dtype, device, Store(Path(cache or out / "cache")), watcher)
    with world.in_turn():
        rules, prepared, validation = _prepare(preparation, framed)

    def run_through(network: torch.nn.Module, conditions: Callable[[Framed], Conditions] | None = None) -> Run:
        return Run(
            settings,
            Denoiser(network, rules, preparation.timesteps, dtype, device),
            PreparedExamples(prepared, preparation.store, settings.caption_dropout, conditions),
            objective,
            world,
            watcher,
            device,
        )

    if limits is not None and settings.method == "full":
        empty = empty_denoiser(parts, settings)
        require_room(empty, limits.memory, settings, run_through(empty))
    subject = _subject(preparation, world)
    if world.leads:
        watcher.tell(str(subject.table))
    if limits is not None and settings.method != "full":
        _keep_within(limits.memory, subject, run_through(subject.denoiser, subject.conditions))
    network, parameters = world.joined(subject.denoiser, subject.parameters)
    state = begin(parameters, settings, dtype, device.type)
    facts = {"denoiser": preparation.denoiser, "data": _digest(prepared)}
    checkpoints = Checkpoints(out / "checkpoints", settings.keep_checkpoints, settings, facts, world)
    if resume:
        checkpoints.restore(state)
    elif world.leads:
        write_json(out / "settings.json", settings.to_json(), durable=False)

    def validate(step: int) -> None:
        if validation is not None and (world.leads or world.mesh is not None):  # who holds a part draws along
            with averaged(subject, state):
                file = out / "samples" / f"step-{step:06d}.png" if world.leads else None
                validation.draw(_drawing_parts(preparation, subject), file)

    watcher.begin(state.step, settings.steps)
    train(replace(run_through(network, subject.conditions), validate=validate), state, checkpoints)
    result = world.gathered(state.result)
    files = subject.save(out, result) if world.leads else ()
    world.wait()
    return Outcome(files, state.step, subject.table)


def _require_fresh(out: Path, resume: bool) -> None:
    """Refuse to begin where another run has left checkpoints, and to go on where none has."""
    began = any((out / "checkpoints").glob("step-*"))
    if began and not resume:
        raise LadingError(f"{out}: a run has left checkpoints here: go on with --resume, or choose another folder")
    if resume and not began:
        raise LadingError(f"{out}: there is no checkpoint to go on from: start without --resume")


def _require_shardable(settings: Settings, world: World) -> None:
    """Refuse what does not go with weights that the processes hold together."""
    if world.mesh is None:
        return
    if settings.memory_limit is not None or settings.host_memory_limit is not None:
        raise LadingError("sharded training keeps its part of the weights in memory: leave the memory limits out")
    if settings.method == "full" and settings.optimizer != "adamw":
        raise LadingError(f"optimizer {settings.optimizer!r} takes no weights that processes hold together: use adamw")


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


def _subject(preparation: Preparation, world: World) -> Subject:
    parts, settings = preparation.parts, preparation.settings
    full = settings.method == "full"
    denoiser = load_denoiser(parts, settings, torch.float32 if full else preparation.dtype, preparation.device, world)
    if settings.method == "lora":
        return lora_subject(parts, settings, denoiser)
    if full:
        return full_subject(parts, settings, denoiser)
    return word_subject(parts, settings, denoiser, preparation.rehearsal(streamed=False))


def _keep_within(limit: int, subject: Subject, run: Run) -> None:
    """Put a streamed denoiser under what is left beside all that stays: optimizer states, and encoders that learn."""
    kept = bytes_beside(subject.parameters.values(), run.settings)
    for encoder in (subject.encoders or {}).values():
        if isinstance(encoder, torch.nn.Module):
            kept += sum(tensor.nbytes for tensor in (*encoder.parameters(), *encoder.buffers()))
    if subject.conditions is not None:
        kept += bytes_saved(lambda: largest_call(run)) * run.settings.accumulate
    keep_within(manager_of(subject.denoiser), limit, kept, run)


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
    streamed = "lading_manager" in subject.denoiser.__dict__
    limits = manager_of(subject.denoiser).limits if streamed else None
    variant = parts.variants.get(parts.autoencoder.name)
    options = LoadOptions(preparation.dtype, preparation.device, variant, limits)
    autoencoder, _ = load_by_spec(parts.autoencoder, options)  # takes turns with the denoiser
    loaded = {parts.autoencoder.name: autoencoder, "scheduler": load_component(parts.folder, "scheduler")}
    return {**loaded, **(subject.encoders or {}), parts.denoiser.name: subject.denoiser}


def _digest(prepared: list[Prepared]) -> str:
    return fingerprint(examples=[[*each.latents, each.conditions] for each in prepared])
