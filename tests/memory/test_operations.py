"""What kernels take beside their tensors, by what was measured of them."""

from __future__ import annotations

from itertools import pairwise

import torch

from lading.memory.trace import trace


def activation_bytes(*widths: int, rows: int = 64, dtype: torch.dtype = torch.bfloat16) -> int:
    """Of linear layers of these widths, one after another."""
    pairs = pairwise(widths)
    layers = (torch.nn.Linear(one, other, bias=False, dtype=dtype, device="meta") for one, other in pairs)
    return trace(
        torch.nn.Sequential(*layers), (torch.empty(rows, widths[0], dtype=dtype, device="meta"),)
    ).activation_bytes


def test_a_product_takes_no_copy_of_its_weights() -> None:
    assert activation_bytes(1 << 15, 1 << 15, rows=8) < 1 << 30, "half of them"


def test_the_code_of_a_kernel_counts_once_for_each_kind_in_half_precision() -> None:
    again, other = activation_bytes(1024, 1024, 1024), activation_bytes(1024, 1024, 1056)
    assert other - again > 1 << 20
    again, other = (activation_bytes(1024, 1024, last, dtype=torch.float32) for last in (1024, 1056))
    assert other - again < 1 << 20
    assert activation_bytes(64, 64) < 1 << 20, "of layers that are smaller than the code it is no matter"


def test_attention_packs_keys_and_values_in_half_precision() -> None:
    class Attention(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    x = torch.empty(1, 8, 8192, 64, dtype=torch.bfloat16, device="meta")
    assert trace(Attention(), (x,)).activation_bytes > 4 * x.nbytes, "queries, the output, keys and values packed"
