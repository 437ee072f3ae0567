"""A program that computes a network under limits, inside a memory control group that makes each of them real.

`python -m tests.memory.contained NAME FILE GROUP [LIMIT]...` builds the network of that name, whose weights are in
FILE, and enters GROUP. For each limit, by default some from the smallest that works to one under which everything
stays, it lets the group grow by what the limit allows, and calls the network twice. It prints what it found, a line of
JSON a limit.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

STEPS = 5
SLACK_SHARE = 0.05
SLACK_BYTES = 64 << 20


@dataclass(frozen=True)
class Case:
    """A network of real widths and reduced depth.

    Attributes:
        build: makes it, on whatever device is the default.
        inputs: one call's.
        entry: the method to call.
    """

    build: Callable[[], Any]
    inputs: Callable[[], dict[str, Any]]
    entry: str = "forward"


def _empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def _unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)


def _flux(double: int, single: int) -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(num_layers=double, num_single_layers=single, guidance_embeds=False)


def _flux_inputs() -> dict[str, Any]:
    return {
        "hidden_states": _empty(1, 64, 64),
        "encoder_hidden_states": _empty(1, 16, 4096),
        "pooled_projections": _empty(1, 768),
        "timestep": _empty(1),
        "img_ids": torch.zeros(64, 3),
        "txt_ids": torch.zeros(16, 3),
    }


def _qwen_image() -> Any:
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(num_layers=3)


def _wan() -> Any:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(num_layers=3)


def _umt5() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(
        UMT5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=1, num_heads=64, vocab_size=256384)
    )


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=3,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
    )


CASES: dict[str, Case] = {
    "SD1.5 UNet": Case(
        _unet,
        lambda: {
            "sample": _empty(1, 4, 32, 32),
            "timestep": torch.tensor(5),
            "encoder_hidden_states": _empty(1, 77, 768),
        },
    ),
    "FLUX": Case(lambda: _flux(2, 4), _flux_inputs),
    "FLUX of 5 GB": Case(lambda: _flux(4, 8), _flux_inputs),
    "Qwen-Image": Case(
        _qwen_image,
        lambda: {
            "hidden_states": _empty(1, 64, 64),
            "encoder_hidden_states": _empty(1, 16, 3584),
            "encoder_hidden_states_mask": torch.ones(1, 16, dtype=torch.int64),
            "timestep": _empty(1),
            "img_shapes": [[(1, 8, 8)]],
        },
    ),
    "Wan": Case(
        _wan,
        lambda: {
            "hidden_states": _empty(1, 16, 2, 8, 8),
            "timestep": torch.tensor([5]),
            "encoder_hidden_states": _empty(1, 16, 4096),
        },
    ),
    "UMT5": Case(_umt5, lambda: {"input_ids": torch.arange(0, 256384, 4000)[None]}),
    "T5": Case(_t5, lambda: {"input_ids": torch.zeros(1, 64, dtype=torch.int64)}),
    "AutoencoderKL": Case(_vae, lambda: {"z": _empty(1, 4, 24, 24)}, "decode"),
}


def main() -> None:
    """Run one case."""
    from lading.catalog.origin import Origin
    from lading.checkpoint import open_checkpoint
    from lading.checkpoint.reading import Reading
    from lading.errors import MemoryLimitError
    from lading.loading import skip_model_initialization
    from lading.loading.network import construction
    from lading.memory.image import Weight
    from lading.memory.limits import Limits
    from lading.memory.management import Manager
    from lading.memory.trace import trace

    name, file, group, limits = sys.argv[1], sys.argv[2], Path(sys.argv[3]), [int(limit) for limit in sys.argv[4:]]
    torch.set_num_threads(2)
    case, checkpoint = CASES[name], open_checkpoint(file)
    with construction(torch.bfloat16), skip_model_initialization():
        model = case.build().eval()
    weights = {name: Weight(Origin.of(checkpoint[name]), torch.bfloat16) for name, _ in model.named_parameters()}
    inputs = case.inputs()
    Reading([]).wait()  # the threads are there
    warm = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3), torch.nn.GroupNorm(2, 8), torch.nn.SiLU())
    trace(warm, (torch.zeros(1, 8, 8, 8),))  # which imports much at its first use
    torch.nn.functional.linear(_empty(8, 64), _empty(64, 64))
    torch.nn.functional.conv2d(_empty(1, 8, 8, 8), _empty(8, 8, 3, 3))
    before = _taken()
    (group / "cgroup.procs").write_text(str(os.getpid()))  # what was taken before stays with the parent

    def manage(limit: int) -> Manager:
        return Manager(model, weights, checkpoint.inventories, Limits(limit), {case.entry: ((), inputs)})

    try:
        manage(1000)
    except MemoryLimitError as error:
        limits = limits or [error.minimum + checkpoint.nbytes * step // (STEPS - 1) for step in range(STEPS)]
    for limit in limits:
        _allow(group, limit + max(SLACK_BYTES, int(SLACK_SHARE * limit)))
        manager = manage(limit)
        Path("/proc/self/clear_refs").write_text("5")
        with torch.no_grad():
            for _ in range(2):
                getattr(model, case.entry)(**inputs)
        grown = _status("VmHWM") - _status("VmRSS") + _taken() - before
        plan = manager.plan
        found = {"limit": limit, "grown": grown, "planned": plan.peak_bytes, "streamed": plan.placement.streamed_bytes}
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
        manager.release()


def _allow(group: Path, nbytes: int) -> None:
    version_1 = (group / "memory.limit_in_bytes").exists()
    (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(nbytes))


def _taken() -> int:
    """Anonymous and shared resident memory: what no kernel can take back."""
    return _status("RssAnon") + _status("RssShmem")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name + ":")).split()[1]) * 1024


if __name__ == "__main__":
    main()
