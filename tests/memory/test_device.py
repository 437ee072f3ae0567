"""The engine on a device: weights come over a link, from host memory or through it, and never too early or too late."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lading import CheckpointError, MemoryLimitError, load_model
from lading.catalog.keymap import KeyMap, swap_halves
from lading.catalog.origin import find_origins
from lading.checkpoint import open_checkpoint
from lading.checkpoint.reading import OpenFile
from lading.devices.fake import FakeDevice
from lading.memory import accelerator
from lading.memory.image import Weight
from lading.memory.limits import Limits
from lading.memory.management import Examples, Manager
from tests.memory.odd import Odd

TOKENS = torch.arange(10)


def manage(
    file: Path, limits: Limits, dtype: torch.dtype = torch.float32, key_map: KeyMap | None = None
) -> tuple[Any, Manager]:
    """A module whose weights stream to a device; its buffers are there."""
    checkpoint = open_checkpoint(file)
    with torch.device("meta"):
        module = Odd().to(dtype).eval()
    origins = find_origins(key_map, checkpoint)
    weights = {name: Weight(origins[name], dtype) for name, _ in module.named_parameters()}
    resident = load_model(Odd, file, torch_dtype=dtype)
    for name, buffer in resident.named_buffers():
        setattr(module, name, buffer)
    return module, Manager(module, weights, checkpoint.inventories, limits, {"forward": ((TOKENS,), {})})


def minimum(file: Path) -> int:
    with pytest.raises(MemoryLimitError) as too_small:
        manage(file, Limits(1000, 10**9, FakeDevice()))
    return too_small.value.minimum


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("host_memory", [80_000, 100_000, 10**9])
def test_outputs_are_right_at_every_limit_and_the_device_holds_no_more_than_planned(
    odd: Path, dtype: torch.dtype, host_memory: int
) -> None:
    resident = load_model(Odd, odd, torch_dtype=dtype)
    for limit in range(minimum(odd), 250_000, 20_000):
        device = FakeDevice()
        module, manager = manage(odd, Limits(limit, host_memory, device), dtype)
        with torch.no_grad():
            for _ in range(3):
                assert torch.equal(module(TOKENS), resident(TOKENS))
            assert torch.equal(module.logits(TOKENS), resident.logits(TOKENS))
        plan = manager.plan
        assert plan.peak_bytes <= limit
        assert device.peak <= limit - plan.activation_bytes
        assert max(device.peak_pinned, plan.placement.host_nbytes) <= host_memory
        manager.release()
        assert device.used == device.pinned == 0


def test_a_module_of_which_nothing_must_stay_computes_too(tmp_path: Path) -> None:
    module = torch.nn.Sequential(*(torch.nn.Linear(64, 64, bias=False) for _ in range(12))).eval()
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    checkpoint, given = open_checkpoint(tmp_path / "model.safetensors"), torch.ones(1, 64)
    with torch.no_grad():
        expected = module(given)
        weights = {name: Weight(origin, torch.float32) for name, origin in find_origins(None, checkpoint).items()}
        examples: Examples = {"forward": ((given,), {})}
        manager = Manager(module, weights, checkpoint.inventories, Limits(100_000, 10**9, FakeDevice()), examples)
        assert torch.equal(module(given), expected)
    manager.release()


def test_weights_of_several_stretches_arrive_whole(odd: Path) -> None:
    key_map = KeyMap((swap_halves("blocks.{n}.weight", "blocks.{n}.weight"),))
    resident: Any = load_model(Odd, odd, torch_dtype=None)
    for block in resident.blocks:
        block.weight.data = block.weight.data.roll(32, 0)
    for limit in (minimum(odd) + 20_000, 200_000):
        for host_memory in (100_000, 10**9):
            module, manager = manage(odd, Limits(limit, host_memory, FakeDevice()), key_map=key_map)
            with torch.no_grad():
                for _ in range(3):
                    assert torch.equal(module(TOKENS), resident(TOKENS))
            assert torch.equal(module.state_dict()["blocks.3.weight"], resident.blocks[3].weight)
            manager.release()


def test_units_that_wait_in_host_memory_are_read_once(odd: Path) -> None:
    module, manager = manage(odd, Limits(minimum(odd) + 20_000, 10**9, FakeDevice()))
    with torch.no_grad():
        module(TOKENS)
        module(TOKENS)
        read, copied = manager.stats().read_bytes, manager.stats().copied_bytes
        module(TOKENS)
    assert manager.plan.placement.hosted
    assert manager.stats().read_bytes == read
    assert manager.stats().copied_bytes - copied == manager.plan.placement.streamed_bytes


def test_the_first_units_are_on_their_way_while_others_compute(odd: Path) -> None:
    module, manager = manage(odd, Limits(minimum(odd) + 60_000, 10**9, FakeDevice()))
    with torch.no_grad():
        for _ in range(3):
            module(TOKENS)
        before = manager.stats().diverged
        module(TOKENS)
    assert manager.stats().diverged == before


def test_the_bus_is_measured_and_later_plans_predict_with_its_rate(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "FEWEST_BYTES", 50_000)
    module, manager = manage(odd, Limits(minimum(odd), 10**9, FakeDevice(link_bytes_per_second=2e7)))
    assert manager.rates.copy > 1e9, "assumed"
    with torch.no_grad():
        for _ in range(3):
            module(TOKENS)
    assert 0 < manager.rates.copy <= 2e7
    assert manager.plan.placement.seconds >= manager.plan.placement.streamed_bytes / 2e7


@pytest.mark.parametrize("seed", range(6))
def test_no_schedule_of_delays_failures_and_paths_gives_a_wrong_output(
    odd: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    resident = load_model(Odd, odd, torch_dtype=None)
    fill = OpenFile.fill

    def unreliable(self: OpenFile, memory: memoryview, offset: int) -> None:
        memory[:] = b"\xff" * len(memory)
        time.sleep(chance.random() / 500)
        if chance.random() < 0.02:
            raise CheckpointError(f"{self.file}: reading failed, as the test wants")
        fill(self, memory, offset)

    device = FakeDevice(link_bytes_per_second=chance.choice([2e7, 2e8, float("inf")]))
    host_memory = chance.choice([80_000, 100_000, 10**9])
    module, manager = manage(odd, Limits(minimum(odd) + chance.randrange(60_000), host_memory, device))
    monkeypatch.setattr(OpenFile, "fill", unreliable)
    failures = 0
    with torch.no_grad():
        for _ in range(25):
            module.skip = resident.skip = chance.random() < 0.3
            entry = chance.choice(["forward", "logits"])
            if chance.random() < 0.2:
                manager.suspend()
            try:
                found = getattr(module, entry)(TOKENS)
            except CheckpointError:
                failures += 1
                continue
            assert torch.equal(found, getattr(resident, entry)(TOKENS))
    assert failures < 25


def test_a_cut_file_is_an_error_that_names_it(odd: Path) -> None:
    module, _ = manage(odd, Limits(minimum(odd) + 10_000, 80_000, FakeDevice()))
    with torch.no_grad():
        module(TOKENS)
        with odd.open("r+b") as file:
            file.truncate(odd.stat().st_size - 20_000)
        with pytest.raises(CheckpointError, match=r"odd\.safetensors: the file (shrank|changed)"):
            for _ in range(3):
                module(TOKENS)


def test_too_little_host_memory_is_said_before_anything_is_read(odd: Path) -> None:
    with pytest.raises(MemoryLimitError, match="host memory") as too_small:
        manage(odd, Limits(10**6, 1000, FakeDevice()))
    _, manager = manage(odd, Limits(10**6, too_small.value.minimum, FakeDevice()))
    assert manager.stats().read_bytes == 0


def test_modules_that_take_turns_share_the_device_and_the_host(odd: Path) -> None:
    resident, device = load_model(Odd, odd, torch_dtype=None), FakeDevice()
    limits = Limits(minimum(odd) + 70_000, 120_000, device)
    pairs = [manage(odd, limits) for _ in range(3)]
    most = max(manager.plan.peak_bytes for _, manager in pairs)
    with torch.no_grad():
        for turn in (0, 1, 1, 2, 0, 2, 1):
            assert torch.equal(pairs[turn][0](TOKENS), resident(TOKENS))
            assert [manager.active for _, manager in pairs] == [number == turn for number in range(3)]
            assert device.peak <= most <= limits.memory
            assert device.pinned <= limits.host_memory
