"""Networks are built without memory, their buffers are right, and nothing is left behind."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel, WanTransformer3DModel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from lading import skip_model_initialization
from lading.loading.network import build_empty


class Net(nn.Module):
    """Computes a buffer, ties two parameters, and tags one with an attribute."""

    frequencies: torch.Tensor
    mask: torch.Tensor

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, width)
        self.head = nn.Linear(width, 8, bias=False)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.randn(width) / width**0.5, requires_grad=False)
        self.scale.is_scale = True  # type: ignore[attr-defined] # parameters may carry attributes
        self.register_buffer("frequencies", 10_000 ** -(torch.arange(width) / width))
        self.register_buffer("mask", torch.ones(width, width).tril().bool(), persistent=False)


def test_parameters_are_on_the_meta_device_and_buffers_are_real_and_right() -> None:
    with skip_model_initialization():
        model = Net()
    expected = Net()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(model.frequencies, expected.frequencies)
    assert torch.equal(model.mask, expected.mask)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in expected.named_parameters()]


def test_ties_gradients_and_attributes_are_kept() -> None:
    with skip_model_initialization():
        model = Net()
    assert model.head.weight is model.embedding.weight
    assert not model.scale.requires_grad
    assert model.embedding.weight.requires_grad
    assert model.scale.is_scale  # type: ignore[attr-defined] # set by Net


def test_the_documented_use_assigns_a_state_dict() -> None:
    source = Net()
    with skip_model_initialization():
        model = Net()
    model.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(model.scale, source.scale)


def test_contexts_nest_and_the_inner_device_wins() -> None:
    with skip_model_initialization("meta"):
        with skip_model_initialization("cpu"):
            inner = nn.Linear(2, 2)
        outer = nn.Linear(2, 2)
    after = nn.Linear(2, 2)
    assert not inner.weight.is_meta
    assert outer.weight.is_meta
    assert not after.weight.is_meta


def test_everything_is_restored_after_an_exception() -> None:
    original = nn.Module.register_parameter
    with pytest.raises(ZeroDivisionError), skip_model_initialization():
        raise ZeroDivisionError
    assert nn.Module.register_parameter is original
    assert not nn.Linear(2, 2).weight.is_meta


def test_other_threads_build_real_networks_meanwhile() -> None:
    entered, done = threading.Event(), threading.Event()

    def build_real() -> bool:
        entered.wait(10)
        real = not any(parameter.is_meta for parameter in Net().parameters())
        done.set()
        return real

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(build_real)
        with skip_model_initialization():
            entered.set()
            done.wait(10)
            mine = Net()
        assert other.result()
    assert all(parameter.is_meta for parameter in mine.parameters())


def test_many_threads_at_once_do_not_mix() -> None:
    def build(number: int) -> bool:
        if number % 2:
            with skip_model_initialization():
                return all(parameter.is_meta for parameter in Net().parameters())
        return not any(parameter.is_meta for parameter in Net().parameters())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(build, range(200)))


def test_lazy_modules_are_left_alone() -> None:
    with skip_model_initialization():
        model = nn.LazyLinear(3)
    assert model(torch.ones(1, 5)).shape == (1, 3)


UNET = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 8,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "layers_per_block": 1,
}
FLUX = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "pooled_projection_dim": 16,
    "axes_dims_rope": (4, 4, 8),
}
WAN = {
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 16,
    "ffn_dim": 16,
    "freq_dim": 16,
}
CLIP = CLIPTextConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
T5 = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)


@pytest.mark.parametrize(
    ("model_class", "config"),
    [(UNet2DConditionModel, UNET), (FluxTransformer2DModel, FLUX), (WanTransformer3DModel, WAN)],
)
def test_buffers_of_diffusers_classes_equal_those_of_a_normal_construction(
    model_class: type[nn.Module], config: dict[str, object]
) -> None:
    with skip_model_initialization():
        model = model_class(**config)
    expected = dict(model_class(**config).named_buffers())
    assert {name for name, _ in model.named_buffers()} == set(expected)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, expected[name]), name
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(("model_class", "config"), [(CLIPTextModel, CLIP), (T5EncoderModel, T5)])
def test_buffers_of_transformers_classes_equal_those_of_a_normal_construction(
    model_class: type[nn.Module], config: object
) -> None:
    model = build_empty(model_class, config, None)
    expected = dict(model_class(config).named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, expected[name]), name
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(("model_class", "config"), [(UNet2DConditionModel, UNET), (CLIPTextModel, CLIP)])
def test_no_random_numbers_are_worked_out_for_parameters_without_memory(
    model_class: type[nn.Module], config: object
) -> None:
    ran = set()

    class Ran(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch types it not
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            ran.add(operator.overloadpacket.__name__)
            return operator(*args, **(kwargs or {}))

    with Ran():  # type: ignore[no-untyped-call] # torch types it not
        build_empty(model_class, config, None)
    assert not ran & {"uniform_", "normal_", "normal", "uniform"}
    with Ran():  # type: ignore[no-untyped-call] # torch types it not
        model_class(**config) if isinstance(config, dict) else model_class(config)
    assert ran & {"uniform_", "normal_"}
