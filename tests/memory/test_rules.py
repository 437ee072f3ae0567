"""The eight keys: what they mean, and what is said about those that cannot be followed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lading import AutoWrappedLinear, LadingError, ModelConfig, enable_vram_management
from lading.memory.rules import parse_limit, parse_rules

CPU: dict[str, Any] = {"computation_device": "cpu", "computation_dtype": torch.bfloat16}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**CPU, "onload_devise": "cpu"}, "no key 'onload_devise'"),
        ({**CPU, "offload_dtype": "float7"}, "offload_dtype: there is no dtype 'float7'"),
        ({**CPU, "offload_dtype": torch.int8}, "offload_dtype=torch.int8: weights cannot be cast to it"),
        ({**CPU, "offload_dtype": 16}, "offload_dtype: 16 is no dtype"),
        ({**CPU, "preparing_device": "cuda:99"}, "preparing_device='cuda:99' is not there"),
        ({**CPU, "preparing_device": "disc"}, "preparing_device='disc' is not there"),
        ({**CPU, "onload_device": "meta"}, "onload_device='meta' holds no values"),
        ({**CPU, "computation_device": "disk", "computation_dtype": "disk"}, "nothing computes on a disk"),
        ({**CPU, "computation_device": "disk"}, "computation_dtype and computation_device is torch.bfloat16"),
        ({**CPU, "computation_dtype": torch.float8_e4m3fn}, "computation_dtype=torch.float8_e4m3fn is for storage"),
        ({"offload_device": "cpu"}, "does not say where to compute"),
        ({**CPU, "offload_device": "disk", "offload_dtype": torch.bfloat16}, "give 'disk' for both"),
        ({**CPU, "offload_device": "cpu", "offload_dtype": "disk"}, "give 'disk' for both"),
        ({**CPU, "offload_device": "disk"}, "there is no disk_map"),
        ({**CPU, "preparing_dtype": "disk"}, "there is no disk_map"),
    ],
)
def test_a_config_that_cannot_be_followed_is_one_clear_error_before_a_layer_is_replaced(
    config: dict[str, Any], message: str
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(LadingError, match=message):
        enable_vram_management(model, {torch.nn.Linear: AutoWrappedLinear}, config)
    assert type(model[0]) is torch.nn.Linear
    with pytest.raises(LadingError, match=message):
        AutoWrappedLinear(torch.nn.Linear(2, 2), **config)


@pytest.mark.parametrize("limit", [-1, True, "much", float("nan"), float("inf"), [8]])
def test_a_limit_that_is_no_size_is_a_clear_error(limit: Any) -> None:
    with pytest.raises(LadingError, match=r"is no size|is not a size"):
        parse_limit(limit)


def test_what_is_left_out_is_as_in_computation() -> None:
    rules = parse_rules({**CPU, "offload_dtype": "fp8", "onload_dtype": None})
    assert str(rules) == "cpu in float8_e4m3fn, then cpu in bfloat16, then cpu in bfloat16, then cpu in bfloat16"
    assert parse_rules(rules.vram_config()) == rules


def test_either_key_puts_a_state_on_the_disk() -> None:
    for key in ("offload_dtype", "offload_device"):
        rules = parse_rules({**CPU, key: "disk"})
        assert rules.offload.on_disk and rules.needs_disk and not rules.onload.on_disk
        assert parse_rules(rules.vram_config()) == rules


def test_the_config_of_a_model_config_is_followed() -> None:
    config = ModelConfig(path="x", offload_dtype="disk", onload_dtype="fp8", **CPU).vram_config()
    assert str(parse_rules(config)).startswith("disk, then cpu in float8_e4m3fn, then cpu in bfloat16")
