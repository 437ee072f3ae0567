"""The steps of a run: forward, loss, backward, optimizer.

What is trained, where its weights lie and how many processes share a step is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import torch
from diffusers.optimization import SchedulerType, get_scheduler

from lading.errors import LadingError
from lading.latents import LatentShape
from lading.training.averaging import Average
from lading.training.checkpoints import Checkpoints, State
from lading.training.conditions import Conditions, alike, signature
from lading.training.denoising import Denoiser
from lading.training.objectives import Objective, Task
from lading.training.order import Order, generator_for
from lading.training.settings import Settings
from lading.training.watching import Progress, Watcher
from lading.training.world import World


@dataclass(frozen=True)
class Sample:
    """An example as the loop sees it.

    Attributes:
        latents: of the shape, drawn from what the autoencoder gave.
        shape: of a batch of one.
    """

    latents: torch.Tensor
    conditions: Conditions
    shape: LatentShape


class Examples(Protocol):
    """What a run learns from."""

    @property
    def buckets(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each example's latent; those of one shape make batches."""

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Return an example, with what chance decides of it decided by a generator."""


@dataclass(frozen=True)
class Run:
    """All that stays while a run goes on.

    Attributes:
        validate: called after a step where the settings ask for it, and at the end.
    """

    settings: Settings
    denoiser: Denoiser
    examples: Examples
    objective: Objective
    world: World
    watcher: Watcher
    device: torch.device
    validate: Callable[[int], None] | None = None


def begin(parameters: Mapping[str, torch.nn.Parameter], settings: Settings, dtype: torch.dtype, device: str) -> State:
    """Return the state before the first step.

    Raises:
        LadingError: nothing is trainable, or what is trainable has no data yet or is no float32.
    """
    if not parameters:
        raise LadingError("nothing is trainable: add adapters, or thaw parameters, before the optimizer is made")
    for name, parameter in parameters.items():
        if parameter.is_meta:
            raise LadingError(f"{name} has no data yet: load the weights before the optimizer is made")
        if parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise LadingError(f"{name} is {kind}: what is trained is held in float32, or small steps are lost")
    optimizer = _optimizer(list(parameters.values()), settings)
    schedule = _schedule(optimizer, settings)
    scaler = torch.amp.GradScaler(device) if dtype == torch.float16 else None
    average = None if settings.ema is None else Average(parameters, settings.ema)
    return State(parameters, optimizer, schedule, scaler, average)


def train(run: Run, state: State, checkpoints: Checkpoints) -> None:
    """Make the steps that are left.

    Raises:
        LadingError: the loss or a gradient is no number; the state before that step is kept as a checkpoint. Or
            nothing is trained, or a checkpoint cannot be written.
    """
    settings, world = run.settings, run.world
    order = Order(run.examples.buckets, settings.batch_size, settings.seed)
    while state.step < settings.steps:
        start = time.perf_counter()
        batches = order.step(state.step, settings.accumulate * world.size)
        fault, loss, norm = _step(run, state, batches)
        if fault is not None:
            checkpoints.save(state)
            raise LadingError(
                f"step {state.step + 1}: {fault}: the weights of step {state.step} are kept as a checkpoint; lower the "
                f"learning rate ({settings.learning_rate}), clip gradients, or use another dtype"
            )
        examples = sum(len(batch) for _, batch in batches)
        rate = float(state.optimizer.param_groups[0]["lr"])
        state.schedule.step()
        state.step += 1
        if state.average is not None:
            state.average.update(state.parameters, state.step)
        seconds = time.perf_counter() - start
        run.watcher.step(Progress(state.step, settings.steps, loss, rate, norm, seconds, examples))
        done = state.step == settings.steps
        if done or _is_due(state.step, settings.checkpoint_every):
            checkpoints.save(state)
        if run.validate is not None and (done or _is_due(state.step, settings.validate_every)):
            run.validate(state.step)
        world.wait()


def _step(run: Run, state: State, batches: Sequence[tuple[int, tuple[int, ...]]]) -> tuple[str | None, float, float]:
    """Make one step of the optimizer.

    Returns:
        What is wrong, in which case no weight has been changed; the loss; the norm of the gradients.
    """
    world, settings = run.world, run.settings
    examples = sum(len(batch) for _, batch in batches)
    state.optimizer.zero_grad(set_to_none=True)
    torch.manual_seed(generator_for(settings.seed, "dropout", state.step, world.rank).initial_seed())
    groups = [group for batch in batches[world.rank :: world.size] for group in _groups(run, *batch)]
    total = torch.zeros((), device=run.device)
    calls = world.most(len(groups))
    for number in range(calls):
        with world.turn(run.denoiser.network, last=number == calls - 1):
            loss = _loss(run, groups[min(number, len(groups) - 1)]) / examples
            if number >= len(groups):  # others have more, and this process has a part in their weights
                loss = loss * 0
            total += loss.detach()
            scaled = loss * world.size
            torch.autograd.backward(scaled if state.scaler is None else state.scaler.scale(scaled))
    loss_value = world.total(total)
    if not _finite(loss_value):
        return f"the loss is {loss_value}", loss_value, 0.0
    if state.step == 0:
        _require_gradients(run, state)
    parameters = list(state.parameters.values())
    if state.scaler is not None:
        state.scaler.unscale_(state.optimizer)
    norm = float(world.whole(torch.nn.utils.clip_grad_norm_(parameters, settings.clip or float("inf"))))
    if state.scaler is not None:
        state.scaler.step(state.optimizer)  # which leaves out a step whose gradients overflow
        state.scaler.update()
    elif not _finite(norm):
        return f"the norm of the gradients is {norm}", loss_value, norm
    else:
        state.optimizer.step()
    return None, loss_value, norm


@dataclass(frozen=True)
class _Group:
    """Examples of one batch that go through the network together, with their noise."""

    samples: list[Sample]
    noise: list[torch.Tensor]
    moments: list[torch.Tensor]


def _groups(run: Run, number: int, batch: Sequence[int]) -> Iterator[_Group]:
    """Cut a batch into groups of one shape, mostly one; each example draws from a generator of its own."""
    drawn = []
    for place, index in enumerate(batch):
        generator = generator_for(run.settings.seed, "example", number, place)
        sample = run.examples.draw(index, generator)
        noise = torch.randn(sample.latents.shape, generator=generator)
        drawn.append((sample, noise, run.objective.draw(generator, sample.shape.tokens)))
    by_shape: dict[tuple[int, ...], list[tuple[Sample, torch.Tensor, torch.Tensor]]] = {}
    for each in drawn:
        by_shape.setdefault(each[0].shape.shape, []).append(each)
    for members in by_shape.values():
        conditions = alike([sample.conditions for sample, _, _ in members])
        by_signature: dict[str, list[tuple[Sample, torch.Tensor, torch.Tensor]]] = {}
        for lengthened, (sample, noise, moment) in zip(conditions, members, strict=True):
            sample = Sample(sample.latents, lengthened, sample.shape)
            by_signature.setdefault(signature(lengthened), []).append((sample, noise, moment))
        for group in by_signature.values():
            samples, noises, moments = zip(*group, strict=True)
            yield _Group(list(samples), list(noises), list(moments))


def _loss(run: Run, group: _Group) -> torch.Tensor:
    """Return the sum over a group of each example's weighted mean squared error, in float32."""
    task, shape = _task(run, group)
    predicted = run.denoiser(task.noisy, task.timesteps, [each.conditions for each in group.samples], shape)
    errors = torch.nn.functional.mse_loss(predicted, task.target.float(), reduction="none").flatten(1).mean(1)
    return (errors * task.weights).sum()


def _task(run: Run, group: _Group) -> tuple[Task, LatentShape]:
    latents, noise = (
        torch.cat(tensors).to(run.device) for tensors in ([each.latents for each in group.samples], group.noise)
    )
    shape = group.samples[0].shape
    shape = type(shape)({**shape.sizes, "batch": len(latents)}, shape.layout, shape.padding)
    return run.objective.task(latents, noise, torch.stack(group.moments).to(run.device)), shape


def largest_call(run: Run) -> dict[str, Any]:
    """Return the arguments of the largest call of the network in an epoch; of texts it may meet a longer one."""
    order = Order(run.examples.buckets, run.settings.batch_size, run.settings.seed)
    sizes = [prod(shape) for shape in run.examples.buckets]
    number = max(range(order.batches), key=lambda each: sum(sizes[index] for index in order.batch(each)))
    group = max(_groups(run, number, order.batch(number)), key=lambda each: sum(one.numel() for one in each.noise))
    task, shape = _task(run, group)
    return run.denoiser.arguments(task.noisy, task.timesteps, [each.conditions for each in group.samples], shape)


def _require_gradients(run: Run, state: State) -> None:
    """Refuse to go on where the first step would change nothing: no gradient reaches what is trained."""
    reached = [parameter.grad for parameter in state.parameters.values() if parameter.grad is not None]
    if not any(bool(run.world.whole(gradient).count_nonzero()) for gradient in reached):
        raise LadingError(
            f"step 1: no gradient reaches any of the {len(state.parameters)} trainable parameters: they are not those "
            "that the network computes with, or are detached from its output"
        )
    silent = [name for name, parameter in state.parameters.items() if parameter.grad is None]
    if silent:
        count = f"{len(silent)} of {len(state.parameters)}"
        run.watcher.tell(f"{count} trainable parameters have no part in the loss, such as {silent[0]}")


def _schedule(optimizer: torch.optim.Optimizer, settings: Settings) -> torch.optim.lr_scheduler.LRScheduler:
    name = "constant_with_warmup" if settings.schedule == "constant" and settings.warmup else settings.schedule
    known = [kind.value for kind in SchedulerType if kind is not SchedulerType.PIECEWISE_CONSTANT]
    if name not in known:
        raise LadingError(f"schedule {name!r} is not known: use one of {', '.join(known)}")
    schedule: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
        name, optimizer, num_warmup_steps=settings.warmup, num_training_steps=settings.steps
    )
    return schedule


def _optimizer(parameters: list[torch.nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    options: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": settings.betas,
        "weight_decay": settings.weight_decay,
    }
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **options)
    if settings.optimizer == "adamw8bit":
        try:
            import bitsandbytes
        except ImportError:
            raise LadingError("optimizer 'adamw8bit' needs bitsandbytes: pip install bitsandbytes") from None
        optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(parameters, **options)
        return optimizer
    raise LadingError(f"optimizer {settings.optimizer!r} is not known: use adamw or adamw8bit")


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _finite(value: float) -> bool:
    return value - value == 0
