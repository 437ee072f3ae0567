"""SD1.5's UNet at its real size from disk to tensors, every page touched: lading beside safetensors and diffusers."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bench.runs import interleave, machine, medians, python

PRELUDE = """
import json, os, resource, sys, time
import torch, lading
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
folder = sys.argv[1]
file = folder + "/diffusion_pytorch_model.safetensors"
torch.set_num_threads(2)
with torch.device("meta"):
    UNet2DConditionModel(block_out_channels=(32, 32, 32, 32))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
"""
TOUCH = """
for tensor in tensors:
    tensor.view(torch.uint8).flatten()[::4096].sum()
seconds = time.perf_counter() - start
peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(json.dumps({"seconds": seconds, "peak": peak}))
"""
WAYS = {
    "safetensors load_file": "tensors = load_file(file).values()",
    "lading.load_state_dict": "tensors = lading.load_state_dict(file).values()",
    "lading.load_state_dict, direct": "os.environ['LADING_READ'] = 'direct'; "
    "tensors = lading.load_state_dict(file).values()",
    "diffusers from_pretrained": "m = UNet2DConditionModel.from_pretrained(folder, dtype=torch.float16); "
    "tensors = [p.detach() for p in m.parameters()]",
    "lading.load_model": "m = lading.load_model(UNet2DConditionModel, folder, torch_dtype=torch.float16); "
    "tensors = [p.detach() for p in m.parameters()]",
    "diffusers from_pretrained, to float32": "m = UNet2DConditionModel.from_pretrained(folder, dtype=torch.float32); "
    "tensors = [p.detach() for p in m.parameters()]",
    "lading.load_model, to float32": "m = lading.load_model(UNet2DConditionModel, folder, torch_dtype=torch.float32); "
    "tensors = [p.detach() for p in m.parameters()]",
}


def write_unet(folder: Path) -> Path:
    """Write SD1.5's UNet with random weights in half precision, 1.72 GB, and return its file."""
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file

    with torch.device("meta"):
        model = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    model.save_config(folder)
    noise = (torch.randn(1 << 25) * 0.02).half()
    tensors = {
        name: noise[: tensor.numel()].reshape(tensor.shape).clone() for name, tensor in model.state_dict().items()
    }
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file(tensors, file, {"format": "pt"})
    return file


def drop_from_cache(file: Path) -> None:
    """Ask the kernel to forget a file's pages, so that the next read comes from the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def main(rounds: int = 5) -> None:
    """Measure cold and warm, and print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = write_unet(folder)
        programs = {way: python(PRELUDE + code + TOUCH, str(folder)) for way, code in WAYS.items()}
        cold = interleave(programs, rounds, lambda: drop_from_cache(file))
        warm = interleave(programs, rounds)
        gigabytes = file.stat().st_size / 1e9
    print(f"\nSD1.5 UNet, float16, {gigabytes:.2f} GB; median of {rounds}; {machine()}\n")
    print("| way | cold s | warm s | peak memory / file |\n|---|---|---|---|")
    peaks = medians(cold, "peak")
    for way in WAYS:
        seconds = [medians(results, "seconds")[way] for results in (cold, warm)]
        print(f"| {way} | {seconds[0]:.2f} | {seconds[1]:.2f} | {peaks[way] / gigabytes / 1e9:.2f} |")


if __name__ == "__main__":
    main()
