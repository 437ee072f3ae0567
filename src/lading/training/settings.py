"""What a training run is told. Plain data: the same settings, data and model give the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias

from lading.errors import LadingError

Method: TypeAlias = Literal["lora", "full", "textual-inversion"]

_FREE = (
    "checkpoint_every",
    "keep_checkpoints",
    "validation_prompts",
    "validate_every",
    "validation_steps",
    "validation_guidance",
    "log_every",
    "kohya",
    "memory_limit",
    "host_memory_limit",
)
"""Settings that do not change the weights: a run may be resumed with others."""


@dataclass(frozen=True)
class Settings:
    """Of a training run.

    Attributes:
        method: what is trained: adapters, the whole denoiser, or the meaning of a new word.
        steps: of the optimizer.
        batch_size: examples to one forward of one process.
        accumulate: forwards of each process to one step.
        learning_rate: at its highest.
        schedule: of the learning rate, as `diffusers.optimization.get_scheduler` names it.
        warmup: steps in which the learning rate rises.
        optimizer: "adamw", or "adamw8bit" of bitsandbytes.
        clip: the largest norm of all gradients together; 0 for none.
        seed: of everything that is drawn.
        dtype: in which frozen weights are held and the network computes; None is float32 on the CPU and bfloat16
            elsewhere. What is trained is always held in float32.
        device: None is the accelerator that torch finds, else the CPU.
        resolution: side of a square of the examples' area, in pixels; None is what the pipeline draws by default.
        buckets: whether pictures keep their aspect ratio, about, or are cut to squares.
        max_aspect: of the longest bucket.
        num_frames: of films; pictures are films of one frame.
        flip: whether each picture is also shown mirrored.
        caption_dropout: share of examples whose caption is left empty, which guidance needs.
        weighting: of the loss by timestep: "none"; "min-snr" for diffusion; "sigma-sqrt" or "cosmap" for flow matching.
        snr_gamma: of "min-snr".
        timesteps: how they are drawn: "uniform", "logit-normal" or "mode"; None is uniform for diffusion and
            logit-normal for flow matching.
        logit_mean: of "logit-normal".
        logit_std: of "logit-normal".
        shift: of flow matching's noise levels; None is what the scheduler's config says.
        guidance: that denoisers are told which take it as a number.
        rank: of adapters.
        alpha: their strength is alpha / rank; None is the rank.
        target_modules: what adapters are added to; None is what the catalog says of the denoiser.
        lora_dropout: of adapters.
        gradient_checkpointing: whether activations are computed again for the backward pass.
        ema: decay of an average of the weights, which is then what is saved; None for none.
        token: the new word, for textual inversion.
        initial_word: whose meaning the new word begins with.
        vectors: of the new word.
        on_bad: whether a picture that cannot be read ends the run ("fail") or is left out ("skip").
        checkpoint_every: steps from one checkpoint to the next.
        keep_checkpoints: how many are kept.
        validation_prompts: drawn into a grid.
        validate_every: steps from one grid to the next; 0 draws one at the end only.
        kohya: whether adapters are saved in kohya's layout as well.
        memory_limit: of weights and activations; frozen weights that do not fit are streamed.
    """

    method: Method = "lora"
    steps: int = 1000
    batch_size: int = 1
    accumulate: int = 1
    learning_rate: float = 1e-4
    schedule: str = "constant"
    warmup: int = 0
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    dtype: str | None = None
    device: str | None = None
    resolution: int | None = None
    buckets: bool = True
    max_aspect: float = 2.0
    num_frames: int | None = None
    flip: bool = False
    caption_dropout: float = 0.0
    weighting: str = "none"
    snr_gamma: float = 5.0
    timesteps: str | None = None
    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float | None = None
    guidance: float = 1.0
    rank: int = 8
    alpha: float | None = None
    target_modules: tuple[str, ...] | None = None
    lora_dropout: float = 0.0
    gradient_checkpointing: bool = False
    ema: float | None = None
    token: str | None = None
    initial_word: str | None = None
    vectors: int = 1
    on_bad: Literal["fail", "skip"] = "fail"
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    validation_prompts: tuple[str, ...] = ()
    validate_every: int = 0
    validation_steps: int = 25
    validation_guidance: float | None = None
    log_every: int = 1
    kohya: bool = False
    memory_limit: int | str | None = None
    host_memory_limit: int | str | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "rank", "checkpoint_every", "keep_checkpoints", "vectors"):
            if getattr(self, name) < 1:
                raise LadingError(f"{name} {getattr(self, name)} is too small: use 1 or more")
        for name in ("learning_rate", "max_aspect", "snr_gamma"):
            if not getattr(self, name) > 0:
                raise LadingError(f"{name} {getattr(self, name)} is not positive: use a number above 0")
        for name in ("caption_dropout", "lora_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise LadingError(f"{name} {getattr(self, name)} is no share: use a number from 0 to 1")
        if self.ema is not None and not 0 < self.ema < 1:
            raise LadingError(f"ema {self.ema} is no decay: use a number between 0 and 1, such as 0.999")
        if self.method == "textual-inversion" and not self.token:
            raise LadingError('textual inversion needs a token, the new word, such as "<my-cat>"')

    def to_json(self) -> dict[str, Any]:
        """The settings for JSON."""
        return asdict(self)

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Settings:
        """The inverse of `to_json`."""
        tuples = {name: tuple(value) for name, value in content.items() if isinstance(value, list)}
        known = {field.name for field in fields(Settings)}
        return Settings(**{name: value for name, value in {**content, **tuples}.items() if name in known})

    def require_same_run(self, other: Settings) -> None:
        """Refuse to go on with a run whose settings were others.

        Raises:
            LadingError: what differs, with both values.
        """
        mine, theirs = self.to_json(), other.to_json()
        changed = [name for name in mine if name not in _FREE and mine[name] != theirs[name]]
        if changed:
            found = "; ".join(f"{name} is {mine[name]!r} and was {theirs[name]!r}" for name in changed)
            raise LadingError(f"--resume goes on with the settings that the run began with: {found}: use those")
