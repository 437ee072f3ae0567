"""Weights as quantisers save them: names, shapes and dtypes of files that bitsandbytes 0.50, torchao 0.18,
optimum-quanto 0.2.7, ComfyUI's comfy-kitchen 0.2 and diffusers 0.42 wrote, and what those packages decode them to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from diffusers.quantizers.bfl.utils import dequantize_fp8r, dequantize_nvfp4, quantize_fp8r, quantize_nvfp4

State = dict[str, torch.Tensor]
Quantise = Callable[[str, torch.Tensor], tuple[State, torch.Tensor]]
"""A layer's name and its weight -> the tensors that a file holds for them, and the decoded weight in float32."""

NF4: tuple[float, ...] = (-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0)
NF4 += (0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)


def as_bytes(content: dict[str, Any]) -> torch.Tensor:
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def nf4(layer: str, weight: torch.Tensor, nested: bool = False) -> tuple[State, torch.Tensor]:
    """`bitsandbytes.nn.Linear4bit(...).state_dict()`."""
    table = torch.tensor(NF4)
    flat = torch.nn.functional.pad(weight.float().flatten(), (0, -weight.numel() % 64)).view(-1, 64)
    absmax = flat.abs().amax(1)
    codes = (flat / absmax[:, None].clamp(min=1e-30))[..., None].sub(table).abs().argmin(-1).flatten()[: weight.numel()]
    even = torch.nn.functional.pad(codes, (0, codes.numel() % 2)).to(torch.uint8)
    name = f"{layer}.weight"
    state = {name: (even[::2] << 4 | even[1::2]).view(-1, 1), f"{name}.quant_map": table}
    told: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape)}
    if nested:
        offset, levels = absmax.mean().item(), torch.linspace(-1, 1, 256)
        groups = torch.nn.functional.pad(absmax - offset, (0, -absmax.numel() % 256)).view(-1, 256)
        largest = groups.abs().amax(1)
        scale_codes = (groups / largest[:, None])[..., None].sub(levels).abs().argmin(-1).flatten()[: absmax.numel()]
        absmax = levels[scale_codes] * largest.repeat_interleave(256)[: absmax.numel()] + offset
        told |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        state |= {f"{name}.absmax": scale_codes.to(torch.uint8), f"{name}.nested_absmax": largest}
        state |= {f"{name}.nested_quant_map": levels}
    else:
        state[f"{name}.absmax"] = absmax
    state[f"{name}.quant_state.bitsandbytes__nf4"] = as_bytes(told)
    return state, (table[codes] * absmax.repeat_interleave(64)[: codes.numel()]).view(weight.shape)


def nested_nf4(layer: str, weight: torch.Tensor) -> tuple[State, torch.Tensor]:
    return nf4(layer, weight, nested=True)


def int8(layer: str, weight: torch.Tensor) -> tuple[State, torch.Tensor]:
    """`bitsandbytes.nn.Linear8bitLt(...).state_dict()`."""
    largest = weight.float().abs().flatten(1).amax(1)
    codes = (weight.float().flatten(1) * 127 / largest[:, None]).round().to(torch.int8).view(weight.shape)
    order = torch.tensor(0, dtype=torch.uint8)
    state = {f"{layer}.weight": codes, f"{layer}.SCB": largest, f"{layer}.weight_format": order}
    return state, codes * largest.view(-1, 1) * (1 / 127)


def comfy_fp8(layer: str, weight: torch.Tensor) -> tuple[State, torch.Tensor]:
    """The first form, in files with a `scaled_fp8`."""
    scale = weight.float().abs().max() / 448
    codes = (weight.float() / scale).to(torch.float8_e4m3fn)
    return {
        f"{layer}.weight": codes,
        f"{layer}.scale_weight": scale,
        f"{layer}.scale_input": scale,
    }, codes.float() * scale


def comfy(layer: str, weight: torch.Tensor) -> tuple[State, torch.Tensor]:
    """The later form."""
    state, decoded = comfy_fp8(layer, weight)
    state = {
        f"{layer}.weight": state[f"{layer}.weight"],
        f"{layer}.weight_scale": state[f"{layer}.scale_weight"],
        f"{layer}.comfy_quant": as_bytes({"format": "float8_e4m3fn"}),
    }
    return state, decoded


def comfy_int8(layer: str, weight: torch.Tensor) -> tuple[State, torch.Tensor]:
    scale = weight.float().abs().flatten(1).amax(1, keepdim=True) / 127
    codes = (weight.float().flatten(1) / scale).round().to(torch.int8)
    state = {f"{layer}.weight": codes.view(weight.shape), f"{layer}.weight_scale": scale}
    state[f"{layer}.comfy_quant"] = as_bytes({"format": "int8_tensorwise", "per_channel": True})
    return state, (codes * scale).view(weight.shape)


def fp8_by_rows(layer: str, weight: torch.Tensor) -> tuple[State, torch.Tensor]:
    """Black Forest Labs' form."""
    codes, scales = quantize_fp8r(weight)
    return {f"{layer}.weight": codes, f"{layer}.weight_scale": scales}, dequantize_fp8r(codes, scales)


def nvfp4(layer: str, weight: torch.Tensor) -> tuple[State, torch.Tensor]:
    """Black Forest Labs' and ModelOpt's form."""
    codes, scales, whole = quantize_nvfp4(weight)
    names = (f"{layer}.{end}" for end in ("weight", "weight_scale", "weight_scale_2", "input_scale"))
    return dict(zip(names, (codes, scales, whole, torch.ones(())), strict=True)), dequantize_nvfp4(codes, scales, whole)


def in_tiles(scales: torch.Tensor) -> torch.Tensor:
    """Scales as tensor cores read them, one by one as cuBLAS describes it."""
    rows, columns = scales.shape
    down, across = -(-rows // 128), -(-columns // 4)
    found = torch.zeros(down * across * 512, dtype=torch.uint8)
    for row in range(rows):
        for column in range(columns):
            tile = row // 128 * across + column // 4
            found[512 * tile + row % 32 * 16 + row % 128 // 32 * 4 + column % 4] = scales.view(torch.uint8)[row, column]
    return found.view(down * 128, across * 4).view(scales.dtype)


def comfy_nvfp4(layer: str, weight: torch.Tensor) -> tuple[State, torch.Tensor]:
    state, decoded = nvfp4(layer, weight)
    codes = state[f"{layer}.weight"]
    state |= {f"{layer}.weight": codes << 4 | codes >> 4, f"{layer}.comfy_quant": as_bytes({"format": "nvfp4"})}
    return {**state, f"{layer}.weight_scale": in_tiles(state[f"{layer}.weight_scale"])}, decoded


def mxfp8(layer: str, weight: torch.Tensor) -> tuple[State, torch.Tensor]:
    groups = weight.float().view(weight.shape[0], -1, 32)
    exponents = (groups.abs().amax(-1) / 448).log2().ceil()
    codes = (groups / exponents.exp2()[..., None]).to(torch.float8_e4m3fn)
    decoded = (codes.float() * exponents.exp2()[..., None]).view(weight.shape)
    scales = (exponents + 127).to(torch.uint8).view(torch.float8_e8m0fnu)
    state = {f"{layer}.weight": codes.view(weight.shape), f"{layer}.weight_scale": in_tiles(scales)}
    return {**state, f"{layer}.comfy_quant": as_bytes({"format": "mxfp8"})}, decoded


def quanto(layer: str, weight: torch.Tensor) -> tuple[State, torch.Tensor]:
    """`save_pretrained` of a network that diffusers quantised with QuantoConfig."""
    scale = (weight.float().abs().flatten(1).amax(1, keepdim=True) / 127).to(torch.bfloat16)
    codes = (weight.float().flatten(1) / scale.float()).round().clamp(-128, 127).to(torch.int8)
    one = torch.ones((), dtype=torch.bfloat16)
    state = {f"{layer}.weight._data": codes, f"{layer}.weight._scale": scale}
    return {**state, f"{layer}.input_scale": one, f"{layer}.output_scale": one}, scale.float() * codes


def torchao(layer: str, weight: torch.Tensor) -> tuple[State, torch.Tensor]:
    """`save_pretrained` of a network that diffusers quantised with TorchAoConfig; see `torchao_metadata`."""
    scale = weight.float().abs().amax(1, keepdim=True) / 127
    zero = torch.arange(weight.shape[0], dtype=torch.int8).view(-1, 1) % 5
    codes = ((weight.float() / scale).round() + zero).clamp(-128, 127).to(torch.int8)
    state = {f"{layer}._weight_qdata": codes, f"{layer}._weight_scale": scale, f"{layer}._weight_zero_point": zero}
    return state, (codes.int() - zero.int()).float() * scale


def torchao_metadata(state: State) -> dict[str, str]:
    """What torchao says in the header of the layers in a state."""
    layers = [name.removesuffix("._weight_qdata") for name in state if name.endswith("._weight_qdata")]
    told = {
        "_type": "Int8Tensor",
        "_data": {"block_size": [1, 16], "dtype": {"_type": "torch.dtype", "_data": "bfloat16"}},
        "_tensor_data_names": ["zero_point", "qdata", "scale"],
    }
    return {"format": "pt", **{f"{layer}.weight": json.dumps(told) for layer in layers}}


SCHEMES: dict[str, tuple[Quantise, str]] = {
    "nf4": (nf4, "bitsandbytes nf4"),
    "nested nf4": (nested_nf4, "bitsandbytes nf4"),
    "bitsandbytes int8": (int8, "bitsandbytes int8"),
    "ComfyUI's scaled fp8": (comfy_fp8, "scaled float8_e4m3fn"),
    "ComfyUI's fp8": (comfy, "scaled float8_e4m3fn"),
    "ComfyUI's int8": (comfy_int8, "scaled int8"),
    "ComfyUI's nvfp4": (comfy_nvfp4, "nvfp4"),
    "ComfyUI's mxfp8": (mxfp8, "mxfp8"),
    "fp8 by rows": (fp8_by_rows, "scaled float8_e4m3fn"),
    "nvfp4": (nvfp4, "nvfp4"),
    "quanto": (quanto, "quanto int8"),
    "torchao": (torchao, "torchao Int8Tensor"),
}
"""What a test calls it -> how it is written, and what lading calls it."""
