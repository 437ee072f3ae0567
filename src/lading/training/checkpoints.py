"""A run's state on disk: it can be killed at any moment and goes on from its last checkpoint, bit for bit.

A checkpoint is a folder, whole or not there: safetensors and JSON, no pickle. What is drawn at a step depends on the
seed and the step's number alone, so that neither generators nor the place in the data have a state beside the step.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lading.checkpoint import load_state_dict
from lading.errors import CheckpointError, LadingError
from lading.loading.sharded import spread_like
from lading.training.averaging import Average
from lading.training.durable import remove_parts, whole, write_json, write_tensors
from lading.training.settings import Settings
from lading.training.world import ALONE, World

FORMAT = 1


@dataclass
class State:
    """All that changes while a run goes on.

    Attributes:
        parameters: that are trained, by name.
        schedule: of the learning rate.
        scaler: of losses in float16; None elsewhere.
        average: of the parameters; None without.
        step: of the optimizer, done so far.
    """

    parameters: Mapping[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler | None = None
    average: Average | None = None
    step: int = 0

    @property
    def result(self) -> Mapping[str, torch.Tensor]:
        """The weights that the run gives: their average, where there is one."""
        return self.average.tensors if self.average is not None else self.parameters


class Checkpoints:
    """The checkpoints of a run, the newest last.

    Args:
        folder: in which each is a folder of its own.
        keep: how many stay when a new one is there.
        facts: of the run, such as the model's fingerprint: a run with others cannot go on from them.
        world: the processes that train together: all of them save and restore, and the one that leads writes.
    """

    def __init__(
        self, folder: Path, keep: int, settings: Settings, facts: Mapping[str, Any], world: World = ALONE
    ) -> None:
        self._folder = folder
        self._keep = keep
        self._settings = settings
        self._facts = json.loads(json.dumps(dict(facts)))
        self._world = world

    @property
    def steps(self) -> list[int]:
        """The steps of which there are checkpoints."""
        found = (entry.name.removeprefix("step-") for entry in self._folder.glob("step-*") if entry.is_dir())
        return sorted(int(number) for number in found if number.isdecimal())

    def save(self, state: State) -> Path:
        """Write a state as a checkpoint, and remove the oldest ones.

        Raises:
            LadingError: it cannot be written; those that were there stay.
        """
        target = self._folder / f"step-{state.step:06d}"
        tensors, groups = _optimizer_tensors(state.optimizer, list(state.parameters))
        held = {"trained": state.parameters, "optimizer": tensors}
        if state.average is not None:
            held["average"] = state.average.tensors
        files = {name: self._world.gathered(each) for name, each in held.items()}
        if not self._world.leads:
            return target
        self._folder.mkdir(parents=True, exist_ok=True)
        remove_parts(self._folder)
        if target.is_dir():
            return target
        try:
            with whole(target) as part:
                part.mkdir()
                self._write(part, state, files, groups)
        except OSError as error:
            last = f"the last one is of step {self.steps[-1]}" if self.steps else "there is none yet"
            raise LadingError(
                f"{target}: the checkpoint cannot be written ({error.strerror or error}), and {last}: make room and "
                "start again with --resume"
            ) from error
        for old in self.steps[: -self._keep]:
            shutil.rmtree(self._folder / f"step-{old:06d}")
        return target

    def restore(self, state: State) -> None:
        """Bring a state to the newest checkpoint, in place.

        Raises:
            LadingError: there is none, or it is of another run.
            CheckpointError: its files are damaged.
        """
        if not self.steps:
            raise LadingError(f"{self._folder}: there is no checkpoint to go on from: start without --resume")
        folder = self._folder / f"step-{self.steps[-1]:06d}"
        content = _read_json(folder / "state.json")
        if content.get("format") != FORMAT:
            raise CheckpointError(f"{folder}: it is of format {content.get('format')}, not {FORMAT}: train anew")
        self._settings.require_same_run(Settings.from_json(content["settings"]))
        for name, value in self._facts.items():
            if content["facts"].get(name) != value:
                raise LadingError(f"{folder}: its run had another {name}: go on with that, or train anew")
        _copy(folder / "trained.safetensors", state.parameters)
        if state.average is not None:
            _copy(folder / "average.safetensors", state.average.tensors)
        tensors = load_state_dict(folder / "optimizer.safetensors")
        state.optimizer.load_state_dict(_optimizer_state(content["optimizer"], tensors, state.parameters))
        state.schedule.load_state_dict(content["schedule"])
        if state.scaler is not None:
            state.scaler.load_state_dict(content["scaler"])
        state.step = content["step"]

    def _write(self, folder: Path, state: State, files: Mapping[str, Mapping[str, torch.Tensor]], groups: Any) -> None:
        for name, tensors in files.items():
            write_tensors(folder / f"{name}.safetensors", tensors, durable=False)
        content = {
            "format": FORMAT,
            "step": state.step,
            "settings": self._settings.to_json(),
            "facts": self._facts,
            "optimizer": groups,
            "schedule": state.schedule.state_dict(),
            "scaler": None if state.scaler is None else state.scaler.state_dict(),
        }
        write_json(folder / "state.json", content, durable=False)


def _optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> tuple[dict[str, torch.Tensor], Any]:
    """Return an optimizer's tensors by parameter and entry, and all else as JSON."""
    content = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for number, entries in content["state"].items():
        for entry, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{names[number]}/{entry}"] = value
            else:
                values.setdefault(names[number], {})[entry] = value
    return tensors, {"groups": content["param_groups"], "values": values}


def _optimizer_state(
    content: Any, tensors: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """The inverse of `_optimizer_tensors`."""
    state: dict[int, dict[str, Any]] = {}
    numbers = {name: number for number, name in enumerate(parameters)}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        own = spread_like(tensor, parameters[name]) if tensor.shape == parameters[name].shape else tensor
        state.setdefault(numbers[name], {})[entry] = own.clone()
    for name, entries in content["values"].items():
        state.setdefault(numbers[name], {}).update(entries)
    return {"state": state, "param_groups": content["groups"]}


@torch.no_grad()
def _copy(file: Path, targets: Mapping[str, torch.Tensor]) -> None:
    tensors = load_state_dict(file)
    if tensors.keys() != targets.keys():
        strange = sorted(tensors.keys() ^ targets.keys())
        raise LadingError(f"{file}: it is of other weights, such as {strange[0]}: go on with the model that it is of")
    for name, target in targets.items():
        target.copy_(spread_like(tensors[name], target))


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: it cannot be read ({error}): remove this checkpoint, and --resume") from None
