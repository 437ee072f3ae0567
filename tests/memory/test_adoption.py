"""`manage`: what other libraries loaded computes the same under a limit, and its memory is given back."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from lading import LadingError, MemoryLimitError, load_pipeline, manage, manager_of, shipped_model
from lading.memory import Manager, PipelineManager
from tests.memory.odd import Odd
from tests.memory.test_streaming import draw, noise, run_unet


def own(**options: Any) -> Any:
    return diffusers.UNet2DConditionModel.from_pretrained(
        shipped_model() / "unet", torch_dtype=torch.float32, **options
    )


def stack(count: int = 12) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(count))).eval()


def spools(folder: Path) -> list[Path]:
    return list(folder.glob("lading-*"))


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_module_of_diffusers_computes_the_same_in_less_memory(temporary: Path) -> None:
    resident, managed = own(), own()
    manager = manage(
        managed,
        "9MB",
        example_inputs={"sample": torch.empty(2, 4, 8, 8, device="meta")}
        | {"timestep": torch.tensor(5), "encoder_hidden_states": torch.empty(2, 32, 128, device="meta")},
    )
    assert isinstance(manager, Manager)
    assert manager.plan.placement.slots
    with torch.no_grad():
        assert torch.equal(run_unet(managed), run_unet(resident))
    assert manage(managed, "40MB") is manager
    with torch.no_grad():
        assert torch.equal(run_unet(managed), run_unet(resident))
    assert not manager.plan.placement.slots
    manager.release(weights=True)
    with torch.no_grad():
        assert torch.equal(run_unet(managed), run_unet(resident))
    del manager
    gc.collect()
    assert not spools(temporary)


def test_a_pipeline_of_diffusers_draws_the_same_picture() -> None:
    stock = diffusers.StableDiffusionPipeline.from_pretrained(shipped_model())
    expected = draw(load_pipeline("shapes"), 2, 3.0)
    managers = manage(stock, "8MB")
    assert isinstance(managers, PipelineManager)
    assert torch.equal(draw(stock, 2, 3.0), expected)
    managers.set_limit("7MB")
    assert torch.equal(draw(stock, 2, 3.0), expected)
    assert managers.plan["unet"].placement.slots
    assert managers.stats()["unet"].calls > 0
    managers.release(weights=True)
    assert torch.equal(draw(stock, 2, 3.0), expected)


def test_a_limit_that_is_too_small_leaves_the_module_as_it_was(temporary: Path) -> None:
    model, state = stack(), noise(3, 64)
    with torch.no_grad():
        expected = model(state)
    with pytest.raises(MemoryLimitError) as too_small:
        manage(model, 1000, example_inputs=(state,))
    assert not spools(temporary)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(state), expected)
        manage(model, too_small.value.minimum, example_inputs=(state,))
        assert torch.equal(model(state), expected)


def test_a_full_disk_leaves_the_module_as_it_was(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, state = stack(), noise(3, 64)
    with torch.no_grad():
        expected = model(state)
    written = 0

    def save_until_full(tensors: dict[str, torch.Tensor], file: Path) -> None:
        nonlocal written
        written += 1
        if written == 3:
            raise OSError(28, "No space left on device")
        save_file(tensors, file)

    monkeypatch.setattr("lading.memory.spool._FILE_BYTES", 40_000)
    monkeypatch.setattr("lading.memory.spool.save_file", save_until_full)
    with pytest.raises(LadingError, match=r"cannot be written: .*No space left.*TMPDIR"):
        manage(model, "1MB")
    assert not spools(temporary)
    with torch.no_grad():
        assert torch.equal(model(state), expected)


def test_odd_modules_are_right() -> None:
    torch.manual_seed(0)
    resident, managed = Odd().eval(), Odd().eval()
    for one, other in zip(resident.state_dict().values(), managed.state_dict().values(), strict=True):
        one.normal_(generator=torch.Generator().manual_seed(one.numel()))
        other.copy_(one)
    manage(managed, "120kB", example_inputs=(torch.arange(10),))
    with torch.no_grad():
        assert torch.equal(managed(torch.arange(10)), resident(torch.arange(10)))
        assert torch.equal(managed.logits(torch.arange(4)), resident.logits(torch.arange(4)))
    assert managed.head.weight is managed.table.weight
    assert all(
        torch.equal(a, b) for a, b in zip(managed.state_dict().values(), resident.state_dict().values(), strict=True)
    )


def test_adapters_that_were_there_before_stay_trainable_and_go() -> None:
    resident, managed = own(), own()
    for model in (resident, managed):
        model.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False), "one")
    values = {name: tensor for name, tensor in resident.named_parameters() if ".one." in name}
    for name, tensor in managed.named_parameters():
        if ".one." in name:
            tensor.data.copy_(values[name].data)
    manage(managed, "10MB")
    assert all(parameter.requires_grad == (".one." in name) for name, parameter in managed.named_parameters())
    with torch.no_grad():
        assert torch.equal(run_unet(managed), run_unet(resident))
        for model in (resident, managed):
            model.delete_adapters("one")
        assert torch.equal(run_unet(managed), run_unet(resident))
    assert manager_of(managed).plan.placement.slots


def test_modules_in_training_and_things_that_are_no_modules_are_refused() -> None:
    with pytest.raises(LadingError, match="training mode"):
        manage(stack().train(), "1MB")
    with pytest.raises(LadingError, match="no module"):
        manage(object(), "1MB")


def test_streamed_weights_that_are_asked_to_be_trained_say_no() -> None:
    model = stack()
    manage(model, "150kB")
    model.requires_grad_(True)
    with pytest.raises(LadingError, match="frozen"):
        model(noise(1, 64))
    model.requires_grad_(False)
    model(noise(1, 64))
