"""Replaced layers compute what plain ones do, wherever their weights are and whatever state they are in."""

from __future__ import annotations

import copy
import gc
import itertools
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lading import (
    AutoWrappedLinear,
    AutoWrappedModule,
    AutoWrappedNonRecurseModule,
    DiskMap,
    LadingError,
    ShapeError,
    enable_vram_management,
)
from tests.memory.every_kind import LAYERS, TOKENS, Block, EveryKind, every_kind, save, vram_config
from tests.memory.far_device import FAR, far_device

FP8 = torch.float8_e4m3fn
BF16 = torch.bfloat16
CPU: dict[str, Any] = {"computation_dtype": torch.float32, "computation_device": "cpu"}
FP8_STORAGE: dict[str, Any] = {
    "offload_dtype": FP8,
    "onload_dtype": FP8,
    "preparing_dtype": FP8,
    "computation_dtype": BF16,
    "computation_device": "cpu",
}


def managed(config: dict[str, Any], file: Path, limit: float | None = None, **options: Any) -> EveryKind:
    disk_map = DiskMap(file) if "disk" in config.values() else None
    dtype = config["computation_dtype"]
    model = enable_vram_management(every_kind(dtype), LAYERS, config, limit, disk_map, **options)
    assert isinstance(model, EveryKind)
    return model


@pytest.mark.parametrize("computation", ["cpu", "mps:0"])
@pytest.mark.parametrize("offload", ["cpu", "mps:0", "disk"])
def test_outputs_and_state_dicts_equal_the_plain_models_in_every_state(
    offload: str, computation: str, tmp_path: Path
) -> None:
    plain = every_kind()
    expected, encoded, true = plain(TOKENS), plain.encode(TOKENS), plain.state_dict()
    file = save(plain, tmp_path)

    def require_true(model: EveryKind) -> None:
        found = model.state_dict()
        assert list(found) == list(true)
        assert all(torch.equal(found[name].cpu(), true[name]) for name in true)

    with far_device():
        tokens = TOKENS.to(computation)
        for onload, preparing in itertools.product(["cpu", "mps:0", "disk"], repeat=2):
            for limit in (None, 0):
                model = managed(vram_config(offload, onload, preparing, computation), file, limit)
                require_true(model)
                assert torch.equal(model(tokens).cpu(), expected)
                require_true(model)
                model.offload()  # type: ignore[operator] # enable_vram_management has given it to the model
                require_true(model)
                assert torch.equal(model.encode(tokens).cpu(), encoded)
                model.onload()  # type: ignore[operator] # likewise
                assert torch.equal(model(tokens).cpu(), expected)


@pytest.mark.parametrize("limit", [None, 0])
def test_fp8_storage_computes_with_weights_rounded_by_hand(limit: float | None, tmp_path: Path) -> None:
    rounded = every_kind(BF16)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.to(FP8).to(BF16)
    model = managed(FP8_STORAGE, tmp_path, limit)
    assert {parameter.dtype for parameter in model.parameters()} == {BF16}
    assert {model.state_dict()[name].dtype for name, _ in model.named_parameters()} == {FP8}
    assert torch.equal(model(TOKENS), rounded(TOKENS))
    assert torch.equal(model.state_dict()["mix.weight"].to(BF16), rounded.mix.weight)


def test_a_layer_passes_through_the_rounding_of_every_state() -> None:
    weight = torch.randn(4, 4)
    linear = nn.Linear(4, 4, bias=False)
    linear.weight.data.copy_(weight)
    layer = AutoWrappedLinear(copy.deepcopy(linear), onload_dtype=FP8, preparing_dtype=BF16, vram_limit=0, **CPU)
    expected = torch.nn.functional.linear(torch.eye(4), weight.to(FP8).float())
    assert torch.equal(layer(torch.eye(4)), expected)
    assert layer.state == "onload"
    layer = AutoWrappedLinear(linear, onload_dtype=FP8, preparing_dtype=BF16, **CPU)
    assert torch.equal(layer(torch.eye(4)), expected)
    assert layer.state == "preparing"
    layer.offload()
    assert torch.equal(layer.state_dict()["weight"], weight)


def test_states_change_by_hand_and_by_calls() -> None:
    with far_device():
        layer = AutoWrappedLinear(nn.Linear(4, 4), **vram_config("cpu", "cpu", "mps:0", "mps:0"))
        assert (layer.state, layer.weights.nbytes_on(FAR, layer.state, set())) == ("offload", 0)
        layer.onload()
        assert (layer.state, layer.weights.nbytes_on(FAR, layer.state, set())) == ("onload", 0)
        layer(torch.ones(1, 4).to(FAR))
        assert (layer.state, layer.weights.nbytes_on(FAR, layer.state, set())) == ("preparing", 80)
        layer.onload()
        assert layer.state == "preparing"
        layer.offload()
        assert (layer.state, layer.weights.nbytes_on(FAR, layer.state, set())) == ("offload", 0)
        layer(torch.ones(1, 4).to(FAR))
        assert layer.state == "preparing"


def test_parameters_look_as_they_compute_in_every_state() -> None:
    config = {**FP8_STORAGE, "computation_device": FAR, "offload_device": "cpu", "onload_device": "cpu"}
    with far_device():
        model = enable_vram_management(every_kind(BF16), LAYERS, config, vram_limit=0)
        for change in (model.onload, lambda: model(TOKENS.to(FAR)), model.offload):
            assert {(p.dtype, p.device) for p in model.parameters()} == {(BF16, FAR)}
            assert {p.shape for p in model.parameters()} == {p.shape for p in every_kind().parameters()}
            change()  # type: ignore[operator] # it has these now


def test_what_is_prepared_is_decided_by_counting_bytes(tmp_path: Path) -> None:
    linears = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(4)))  # 1024 bytes each
    with far_device():
        model = enable_vram_management(
            linears, {nn.Linear: AutoWrappedLinear}, vram_config("cpu", "cpu", "mps:0", "mps:0"), 2100 / 2**30
        )
        other = enable_vram_management(
            nn.Sequential(nn.Linear(16, 16, bias=False)),
            {nn.Linear: AutoWrappedLinear},
            vram_config("cpu", "mps:0", "mps:0", "mps:0"),
        )
        state = torch.ones(1, 16).to(FAR)
        model(state)
        assert [layer.state for layer in model] == ["preparing", "preparing", "onload", "onload"]  # type: ignore[attr-defined] # a Sequential
        model.offload()  # type: ignore[operator] # it has this now
        other(state)
        model(state)
        assert [layer.state for layer in model] == ["preparing", "onload", "onload", "onload"]  # type: ignore[attr-defined] # likewise
        other.offload()  # type: ignore[operator] # likewise
        model(state)
        assert [layer.state for layer in model] == ["preparing", "preparing", "onload", "onload"]  # type: ignore[attr-defined] # likewise


def test_without_a_limit_every_layer_is_prepared_and_with_none_to_spare_no_layer_is() -> None:
    with far_device():
        for limit, states in ((None, {"preparing"}), (0, {"onload"})):
            model = enable_vram_management(
                every_kind(), LAYERS, vram_config("cpu", "cpu", "mps:0", "mps:0"), vram_limit=limit
            )
            model(TOKENS.to(FAR))
            layers = [part for part in model.modules() if isinstance(part, (AutoWrappedLinear, AutoWrappedModule))]
            assert {layer.state for layer in layers if any(True for _ in layer.parameters())} == states


def test_tied_weights_stay_one_in_every_state() -> None:
    with far_device():
        model = enable_vram_management(every_kind(), LAYERS, vram_config("cpu", "mps:0", "mps:0", "mps:0"))
        for change in (model.onload, model.offload):
            parameters = dict(model.named_parameters(remove_duplicate=False))
            assert parameters["head.weight"] is parameters["table.weight"]
            change()  # type: ignore[operator] # it has these now


def test_names_and_classes_of_a_model_stay() -> None:
    plain, model = every_kind(), enable_vram_management(every_kind(), LAYERS, {**CPU, "offload_dtype": BF16})
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in model.named_buffers()] == [name for name, _ in plain.named_buffers()]
    assert isinstance(model.head, nn.Linear)
    assert "AutoWrappedModule(LayerNorm((16,)" in repr(model)
    model.train()
    assert all(part.module.training for part in model.modules() if isinstance(part, AutoWrappedModule))


def test_a_weight_that_is_read_directly_is_there_as_it_computes() -> None:
    with far_device():
        norm = AutoWrappedModule(nn.LayerNorm(4), **vram_config("cpu", "cpu", "cpu", "mps:0"), vram_limit=0)
        linear = AutoWrappedLinear(nn.Linear(4, 4), **vram_config("cpu", "cpu", "cpu", "mps:0"), vram_limit=0)
        assert norm.weight.device == linear.weight.device == linear.bias.device == FAR
        assert norm.normalized_shape == (4,)
        with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
            _ = norm.nonsense


def test_a_method_that_reads_what_no_layer_holds_finds_it(tmp_path: Path) -> None:
    plain = every_kind()
    file = save(plain, tmp_path)
    with far_device():
        maps: list[dict[type[nn.Module], Any]] = [LAYERS, {EveryKind: AutoWrappedModule}]
        for layers in maps:
            config = vram_config("disk", "disk", "cpu", "mps:0")
            model: Any = enable_vram_management(every_kind(), layers, config, disk_map=DiskMap(file))
            assert torch.equal(model.scaled(torch.ones(16).to(FAR)).cpu(), plain.scale)


def test_threads_that_share_a_model_get_its_outputs(tmp_path: Path) -> None:
    plain = every_kind()
    model = managed(vram_config("disk", "disk", "cpu", "cpu"), save(plain, tmp_path), 0)
    inputs = [(TOKENS + shift) % 24 for shift in range(8)]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(model, inputs))
    assert all(torch.equal(output, plain(tokens)) for output, tokens in zip(outputs, inputs, strict=True))


def test_a_whole_model_is_replaced_and_its_methods_are_calls(tmp_path: Path) -> None:
    plain = every_kind()
    file = save(plain, tmp_path)
    with far_device():
        config = vram_config("disk", "disk", "cpu", "mps:0")
        model = enable_vram_management(every_kind(), {EveryKind: AutoWrappedModule}, config, disk_map=DiskMap(file))
        assert isinstance(model, AutoWrappedModule)
        assert torch.equal(model.encode(TOKENS.to(FAR)).cpu(), plain.encode(TOKENS))
        assert torch.equal(model(TOKENS.to(FAR)).cpu(), plain(TOKENS))
        assert {parameter.device for parameter in model.parameters()} == {FAR}
        assert all(torch.equal(value.cpu(), plain.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_container_is_replaced_beside_its_children() -> None:
    layers = {**LAYERS, Block: AutoWrappedNonRecurseModule}
    plain = every_kind()
    with far_device():
        model = enable_vram_management(every_kind(), layers, vram_config("cpu", "cpu", "cpu", "mps:0"), 0)
        assert torch.equal(model(TOKENS.to(FAR)).cpu(), plain(TOKENS))
        block = model.get_submodule("blocks.0")
        assert isinstance(block, AutoWrappedNonRecurseModule)
        assert isinstance(block.project, AutoWrappedLinear)
        assert list(model.state_dict()) == list(plain.state_dict())


def test_a_linear_layer_with_a_forward_of_its_own_keeps_it() -> None:
    class Doubling(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - as torch.nn.Linear names it
            return 2 * super().forward(input)

    plain = nn.Sequential(Doubling(4, 4))
    expected = plain(torch.ones(1, 4))
    model = enable_vram_management(plain, {nn.Linear: AutoWrappedLinear}, {**CPU, "offload_dtype": torch.float32})
    assert torch.equal(model(torch.ones(1, 4)), expected)
    with pytest.raises(LadingError, match="replace it by AutoWrappedModule"):
        AutoWrappedLinear(Doubling(4, 4), **CPU)


def test_a_module_with_two_places_is_replaced_by_one() -> None:
    shared = nn.Linear(4, 4)
    model = enable_vram_management(nn.Sequential(shared, nn.Sequential(shared)), {nn.Linear: AutoWrappedLinear}, CPU)
    assert model.get_submodule("0") is model.get_submodule("1.0")


@pytest.mark.parametrize("limit", [None, 0])
def test_gradients_pass_through_frozen_layers(limit: float | None, tmp_path: Path) -> None:
    def gradient(model: nn.Module) -> torch.Tensor:
        state = torch.linspace(-1, 1, 160).reshape(1, 10, 16).requires_grad_()
        model(state).pow(2).sum().backward()
        assert state.grad is not None
        return state.grad

    torch.manual_seed(0)
    block = Block().requires_grad_(False).to(BF16).float()
    expected = gradient(copy.deepcopy(block))
    file = save(block, tmp_path)
    for config in (vram_config("disk", "disk", "cpu", "cpu"), {**CPU, "offload_dtype": BF16, "onload_dtype": BF16}):
        disk_map = DiskMap(file) if "disk" in config.values() else None
        model = enable_vram_management(copy.deepcopy(block), LAYERS, config, limit, disk_map)
        assert torch.equal(gradient(model), expected)


def test_autograd_keeps_no_copies_of_frozen_weights(tmp_path: Path) -> None:
    linear = nn.Linear(512, 512, bias=False).requires_grad_(False)
    layer = AutoWrappedLinear(linear, offload_dtype=FP8, onload_dtype=FP8, vram_limit=0, **CPU)
    norm = AutoWrappedModule(nn.LayerNorm(512).requires_grad_(False), onload_dtype=BF16, vram_limit=0, **CPU)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    state = torch.ones(1, 512, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = norm(layer(state))
    assert sum(tensor.numel() for tensor in kept) < 512 * 512
    output.sum().backward()
    assert state.grad is not None


def test_weights_that_train_are_not_lost_when_they_move() -> None:
    double: dict[str, Any] = {"computation_dtype": torch.float64, "computation_device": "cpu"}
    layer = AutoWrappedLinear(nn.Linear(4, 4), offload_dtype=torch.float32, **double)
    layer.onload()
    layer.requires_grad_()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    before = layer.state_dict()["weight"].clone()
    layer(torch.ones(1, 4, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert torch.equal(layer.state_dict()["weight"], before - 0.5)
    layer.offload()
    assert torch.equal(layer.weight, (before - 0.5).double())


def test_a_weight_that_should_train_as_a_copy_is_a_clear_error() -> None:
    layer = AutoWrappedLinear(nn.Linear(4, 4), name="head", onload_dtype=BF16, vram_limit=0, **CPU)
    assert not layer.weight.requires_grad
    layer(torch.ones(1, 4))
    layer.requires_grad_()
    with pytest.raises(LadingError, match=r"head.weight should train, and it computes as a copy"):
        layer(torch.ones(1, 4))
    with torch.no_grad():
        layer(torch.ones(1, 4))


def test_a_state_dict_can_be_loaded_in_every_state(tmp_path: Path) -> None:
    plain = every_kind()
    file = save(plain, tmp_path)
    other = {name: value + 1 for name, value in plain.state_dict().items()}
    plain.load_state_dict(other)
    for config in (vram_config("cpu", "cpu", "cpu", "cpu"), {**CPU, "offload_dtype": "disk"}):
        for assign in (False, True):
            model = managed(config, file)
            model.onload()  # type: ignore[operator] # it has this now
            model.load_state_dict(other, assign=assign)
            assert torch.equal(model(TOKENS), plain(TOKENS))
            model.offload()  # type: ignore[operator] # likewise
            assert torch.equal(model.state_dict()["mix.weight"], other["mix.weight"])
            assert torch.equal(model(TOKENS), plain(TOKENS))


def test_a_model_that_is_managed_cannot_be_moved_or_copied_by_other_means() -> None:
    model = enable_vram_management(every_kind(), LAYERS, {**CPU, "offload_dtype": BF16})
    assert model.to("cpu") is model
    with pytest.raises(LadingError, match="cannot be moved"):
        model.to(BF16)
    with pytest.raises(LadingError, match="cannot be moved"):
        model.get_submodule("head").half()
    with pytest.raises(LadingError, match="cannot be copied"):
        copy.deepcopy(model)
    with pytest.raises(LadingError, match="already"):
        enable_vram_management(model, LAYERS, CPU)


def test_a_model_that_is_dropped_gives_its_memory_back_at_once(tmp_path: Path) -> None:
    model = managed({**CPU, "offload_dtype": BF16}, tmp_path)
    model(TOKENS)
    watched = weakref.ref(model), weakref.ref(next(model.parameters()))
    gc.disable()
    try:
        del model
        assert [reference() for reference in watched] == [None, None]
    finally:
        gc.enable()


def test_what_was_first_called_in_inference_mode_trains_later(tmp_path: Path) -> None:
    file = save(nn.Linear(4, 4, bias=False), tmp_path)
    for storage in ({"offload_dtype": BF16}, {"offload_dtype": "disk"}, {"onload_dtype": BF16}):
        linear = nn.Linear(4, 4, bias=False)
        with torch.inference_mode():
            layer = AutoWrappedLinear(linear, disk_map=DiskMap(file), **CPU, **storage)
            layer(torch.ones(1, 4))
            layer.offload()
            layer(torch.ones(1, 4))
        state = torch.ones(1, 4, requires_grad=True)
        layer(state).sum().backward()
        assert state.grad is not None


def lora(seed: int, rank: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rank, 8, generator=generator), torch.randn(6, rank, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_lora_adds_its_product_bit_for_bit_and_base_weights_stay(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(8, 6).to(dtype)
    layer = AutoWrappedLinear(
        copy.deepcopy(linear), offload_dtype=FP8, computation_dtype=dtype, computation_device="cpu"
    )
    x = torch.randn(3, 8, dtype=dtype)
    y = layer(x)
    true = {name: value.clone() for name, value in layer.state_dict().items()}
    (a, b), (c, d) = lora(1), lora(2, rank=3)
    layer.load_lora(a, b, scale=0.5)
    layer.load_lora(c, d, name="style")
    a, b, c, d = a.to(dtype), b.to(dtype), c.to(dtype), d.to(dtype)
    assert torch.equal(layer(x), y + 0.5 * (x @ a.T @ b.T) + 1.0 * (x @ c.T @ d.T))
    layer.scale_lora(0.25, "style")
    assert layer.lora.scales == {"default": 0.5, "style": 0.25}
    assert torch.equal(layer(x), y + 0.5 * (x @ a.T @ b.T) + 0.25 * (x @ c.T @ d.T))
    layer.offload()
    layer.clear_lora("default")
    assert torch.equal(layer(x), y + 0.25 * (x @ c.T @ d.T))
    layer.clear_lora()
    assert torch.equal(layer(x), y)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert all(torch.equal(value, true[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (BF16, 4e-2)])
def test_lora_equals_pefts_within_the_rounding_of_the_dtype(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(8, 6).to(dtype)
    a, b = lora(1)
    peft: Any = get_peft_model(
        nn.Sequential(copy.deepcopy(linear)), LoraConfig(r=2, lora_alpha=3, target_modules=["0"])
    )
    adapted = peft.base_model.model[0]
    adapted.lora_A["default"].weight.data = a.to(dtype)
    adapted.lora_B["default"].weight.data = b.to(dtype)
    layer = AutoWrappedLinear(linear, computation_dtype=dtype, computation_device="cpu")
    layer.load_lora(a, b, scale=1.5)
    x = torch.randn(3, 8, dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), peft(x), rtol=tolerance, atol=tolerance)


def test_adapters_merged_into_replaced_layers_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    enable_vram_management(model, {nn.Linear: AutoWrappedLinear}, {"computation_device": "cpu"})
    peft: Any = get_peft_model(model, LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    expected = peft(torch.ones(1, 4))
    peft.merge_adapter()
    with pytest.raises(LadingError, match="adapters are merged"):
        peft(torch.ones(1, 4))
    peft.unmerge_adapter()
    torch.testing.assert_close(peft(torch.ones(1, 4)), expected)


def test_peft_adapts_replaced_layers_and_trains_through_them(tmp_path: Path) -> None:
    plain, model = every_kind(), managed(vram_config("cpu", "cpu", "cpu", "cpu"), tmp_path, 0)
    settings = LoraConfig(target_modules=["project"], init_lora_weights="gaussian")
    outputs, gradients = [], []
    for each in (plain, model):
        torch.manual_seed(1)
        peft: Any = get_peft_model(each, settings)
        outputs.append(peft(TOKENS))
        outputs[-1].sum().backward()
        gradients.append([p.grad for p in peft.parameters() if p.requires_grad])
    assert torch.equal(outputs[0], outputs[1])
    assert gradients[0] and all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_a_lora_that_does_not_fit_is_a_clear_error() -> None:
    layer = AutoWrappedLinear(nn.Linear(8, 6), **CPU)
    with pytest.raises(ShapeError, match=r"A is \(2, 8\) and B is \(5, 2\)"):
        layer.load_lora(torch.ones(2, 8), torch.ones(5, 2))
    with pytest.raises(LadingError, match="no LoRA 'style' on the layer: it has none"):
        layer.clear_lora("style")
