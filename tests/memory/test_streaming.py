"""Modules under a limit compute what resident ones compute, bit for bit, whatever happens on the way."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import CLIPTextModel

from lading import CheckpointError, LadingError, MemoryLimitError, load_model, load_pipeline, manager_of, shipped_model
from lading.catalog.origin import Origin
from lading.checkpoint import open_checkpoint
from lading.checkpoint.reading import Reading
from lading.memory.image import Weight
from lading.memory.limits import Limits
from lading.memory.management import Manager
from lading.memory.trace import trace
from tests.memory.odd import Odd


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run_unet(model: Any, batch: int = 2, size: int = 8) -> torch.Tensor:
    text = noise(batch, 32, 128, seed=1, dtype=model.dtype)
    output: torch.Tensor = model(noise(batch, 4, size, size, dtype=model.dtype), torch.tensor(5), text).sample
    return output


def run_vae(model: Any) -> torch.Tensor:
    latent = model.encode(noise(1, 3, 64, 64, dtype=model.dtype)).latent_dist.mean
    output: torch.Tensor = model.decode(latent).sample
    return output


def run_text(model: Any) -> torch.Tensor:
    output: torch.Tensor = model(torch.arange(20).reshape(2, 10) % 30).last_hidden_state
    return output


MODELS: dict[str, tuple[Any, Callable[[Any], torch.Tensor]]] = {
    "unet": (UNet2DConditionModel, run_unet),
    "vae": (AutoencoderKL, run_vae),
    "text_encoder": (CLIPTextModel, run_text),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("unet", "float32"),
        ("unet", "bfloat16"),
        ("vae", "float16"),
        ("vae", "bfloat16"),
        *(("text_encoder", dtype) for dtype in ("float32", "float16", "bfloat16")),
    ],
)
def test_outputs_equal_the_resident_models_at_every_limit(name: str, dtype: str) -> None:
    model_class, run = MODELS[name]
    folder = shipped_model() / name
    with torch.no_grad():
        expected = run(load_model(model_class, folder, torch_dtype=dtype))
        with pytest.raises(MemoryLimitError) as too_small:
            load_model(model_class, folder, torch_dtype=dtype, memory_limit=1000)
        limit = too_small.value.minimum
        for _ in range(8):
            model = load_model(model_class, folder, torch_dtype=dtype, memory_limit=limit)
            try:
                for _ in range(2):
                    assert torch.equal(run(model), expected)
            except MemoryLimitError as error:  # the first call told what activations take
                limit = error.minimum
                continue
            plan = manager_of(model).plan
            assert plan.peak_bytes <= limit
            if not plan.placement.slots:
                break
            limit = int(limit * 1.4)


def test_the_smallest_limit_that_an_error_names_works(tmp_path: Path) -> None:
    model = load_model(UNet2DConditionModel, shipped_model() / "unet", torch_dtype="float16", memory_limit="20MB")
    run_unet(model)
    with pytest.raises(MemoryLimitError, match="give it at least") as too_small:
        manager_of(model).set_limit(1000)
    run_unet(model)
    manager_of(model).set_limit(too_small.value.minimum)
    run_unet(model)
    with pytest.raises(MemoryLimitError):
        manager_of(model).set_limit(too_small.value.minimum - 1)


def test_shapes_may_change_and_the_plan_follows() -> None:
    folder = shipped_model() / "unet"
    resident = load_model(UNet2DConditionModel, folder, torch_dtype="float32")
    streamed = load_model(UNet2DConditionModel, folder, torch_dtype="float32", memory_limit="12MB")
    with torch.no_grad():
        for batch, size in ((1, 8), (2, 16), (4, 8), (1, 8)):
            assert torch.equal(run_unet(streamed, batch, size), run_unet(resident, batch, size))
        small = manager_of(streamed).plan.activation_bytes
        with pytest.raises(MemoryLimitError):
            run_unet(streamed, 16, 32)
        assert torch.equal(run_unet(streamed), run_unet(resident))
    assert manager_of(streamed).plan.activation_bytes == small


def test_the_limit_can_be_moved_between_calls() -> None:
    model = load_model(UNet2DConditionModel, shipped_model() / "unet", torch_dtype="float32", memory_limit="8MB")
    with torch.no_grad():
        first = run_unet(model)
        tight = manager_of(model).plan.placement.streamed_bytes
        manager_of(model).set_limit("30MB")
        assert torch.equal(run_unet(model), first)
        assert manager_of(model).plan.placement.streamed_bytes == 0 < tight
        manager_of(model).set_limit("9MB")
        assert torch.equal(run_unet(model), first)


def test_odd_modules_are_right(odd: Path) -> None:
    tokens = torch.arange(10)
    resident = load_model(Odd, odd, torch_dtype=None)
    streamed = load_model(Odd, odd, torch_dtype=None, memory_limit="120kB")
    assert streamed.head.weight is streamed.table.weight
    with torch.no_grad():
        for skip in (False, True, False):
            resident.skip = streamed.skip = skip
            assert torch.equal(streamed(tokens), resident(tokens))
            assert torch.equal(streamed.logits(tokens), resident.logits(tokens))
        assert torch.equal(streamed.never(torch.ones(64)), resident.never(torch.ones(64)))
    assert manager_of(streamed).stats().diverged > 0
    assert manager_of(streamed).plan.placement.slots


def test_an_exception_in_the_middle_leaves_the_next_call_right(odd: Path) -> None:
    streamed, resident = (
        load_model(Odd, odd, torch_dtype=None, memory_limit="120kB"),
        load_model(Odd, odd, torch_dtype=None),
    )

    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    with torch.no_grad():
        expected = resident(torch.arange(10))
        assert torch.equal(streamed(torch.arange(10)), expected)
        for block in (0, 4, 7):
            hook = streamed.blocks[block].register_forward_hook(fail)
            with pytest.raises(RuntimeError, match="on purpose"):
                streamed(torch.arange(10))
            hook.remove()
            assert torch.equal(streamed(torch.arange(10)), expected)


def test_two_models_and_calls_from_threads_are_right(odd: Path) -> None:
    resident = load_model(Odd, odd, torch_dtype=None)
    models = [load_model(Odd, odd, torch_dtype=None, memory_limit="120kB") for _ in range(2)]
    wrong: list[int] = []

    def work(number: int) -> None:
        tokens = torch.arange(number + 3)
        with torch.no_grad():
            for turn in range(10):
                model = models[(number + turn) % 2]
                same = torch.equal(model(tokens), resident(tokens)) and torch.equal(
                    model.logits(tokens), resident.logits(tokens)
                )
                if not same:
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_of_inputs_and_adapters_equal_the_resident_models(odd: Path, checkpointed: bool) -> None:
    def gradients(model: Odd) -> list[torch.Tensor]:
        torch.manual_seed(1)
        model.requires_grad_(False)
        adapter = torch.nn.Linear(64, 64)
        state = noise(5, 64).requires_grad_()
        hidden = adapter(state)
        for block in model.blocks:
            if checkpointed:
                hidden = torch.utils.checkpoint.checkpoint(block, hidden, use_reentrant=False)
            else:
                hidden = block(hidden)
            hidden = torch.tanh(hidden)
        torch.autograd.backward(model.head(hidden).square().sum())
        grads = [state.grad, adapter.weight.grad]
        return [grad for grad in grads if grad is not None]

    expected = gradients(load_model(Odd, odd, torch_dtype=None))
    streamed = load_model(Odd, odd, torch_dtype=None, memory_limit="120kB")
    found = gradients(streamed)
    assert manager_of(streamed).plan.placement.slots
    assert len(found) == len(expected) == 2
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def add_adapter(model: Any, name: str, seed: int) -> None:
    targets = ["to_q", "to_v", "ff.net.2"]
    model.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False), name)
    generator = torch.Generator().manual_seed(seed)
    for parameter_name, parameter in model.named_parameters():
        if f".{name}." in parameter_name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.1


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # several adapters are meant
@pytest.mark.parametrize("before", [True, False])
def test_adapters_come_and_go_under_streaming(before: bool) -> None:
    folder = shipped_model() / "unet"
    resident = load_model(UNet2DConditionModel, folder, torch_dtype="float32")
    streamed = load_model(UNet2DConditionModel, folder, torch_dtype="float32", memory_limit="9MB")
    with torch.no_grad():
        plain = run_unet(resident)
        if not before:
            assert torch.equal(run_unet(streamed), plain)
        changes: list[Callable[[Any], Any]] = [
            lambda model: add_adapter(model, "one", 1),
            lambda model: add_adapter(model, "two", 2),
            lambda model: model.set_adapters(["one", "two"], [0.5, 2.0]),
            lambda model: model.disable_adapters(),
            lambda model: model.enable_adapters(),
            lambda model: model.delete_adapters("one"),
        ]
        for change in changes:
            change(resident)
            change(streamed)
            assert torch.equal(run_unet(streamed), run_unet(resident))
        assert not torch.equal(run_unet(streamed), plain)
        assert manager_of(streamed).plan.placement.slots


def test_state_dict_and_saving_give_the_true_weights(odd: Path, tmp_path: Path) -> None:
    streamed, resident = (
        load_model(Odd, odd, torch_dtype=None, memory_limit="120kB"),
        load_model(Odd, odd, torch_dtype=None),
    )
    with torch.no_grad():
        streamed(torch.arange(10))
    mine, theirs = streamed.state_dict(), resident.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
    unet = load_model(UNet2DConditionModel, shipped_model() / "unet", torch_dtype="float16", memory_limit="8MB")
    unet.save_pretrained(tmp_path / "unet")
    saved = load_model(UNet2DConditionModel, tmp_path / "unet", torch_dtype="float16")
    shipped = load_model(UNet2DConditionModel, shipped_model() / "unet", torch_dtype="float16")
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), shipped.parameters(), strict=True))


def test_moving_or_casting_says_what_to_do_and_what_changes_nothing_is_allowed(odd: Path) -> None:
    streamed = load_model(Odd, odd, torch_dtype=None, memory_limit="120kB")
    assert streamed.to("cpu") is streamed
    assert streamed.float() is streamed
    for change in ({"dtype": torch.float16}, {"dtype": torch.bfloat16}, {"device": "meta"}):
        with pytest.raises(LadingError, match="load it with the dtype and device"):
            streamed.to(**change)


def test_a_file_that_is_cut_while_it_streams_is_an_error_and_no_output(odd: Path) -> None:
    streamed = load_model(Odd, odd, torch_dtype=None, memory_limit="120kB")
    with torch.no_grad():
        streamed(torch.arange(10))
        os.truncate(odd, odd.stat().st_size - 20_000)
        with pytest.raises(CheckpointError, match=r"odd.safetensors: the file (shrank|changed).*read for"):
            for _ in range(3):
                streamed(torch.arange(10))
    manager_of(streamed).release()


def test_release_and_garbage_collection_give_everything_back(odd: Path) -> None:
    def counts() -> tuple[int, int]:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir())), len(Path("/proc/self/maps").read_text().splitlines())

    def use(release: bool) -> None:
        streamed = load_model(Odd, odd, torch_dtype=None, memory_limit="120kB")
        with torch.no_grad():
            streamed(torch.arange(10))
        if release:
            manager_of(streamed).release()
            assert all(parameter.is_meta for parameter in streamed.parameters())

    for _ in range(3):
        use(release=True)
    (files, maps), threads = counts(), threading.active_count()
    for number in range(50):
        use(release=number % 2 == 0)
    after = counts()
    assert after[0] <= files
    assert after[1] <= maps + 10
    assert threading.active_count() <= threads


def test_reads_run_ahead_of_the_computation(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first call the units that stream are asked for before they are needed."""
    streamed = load_model(Odd, odd, torch_dtype=None, memory_limit="120kB")
    with torch.no_grad():
        for _ in range(2):
            streamed(torch.arange(10))
        asked = 0
        start = Reading.__init__

        def count(self: Reading, tasks: Any) -> None:
            nonlocal asked
            asked += 1
            start(self, tasks)

        monkeypatch.setattr(Reading, "__init__", count)
        before = manager_of(streamed).stats().diverged
        streamed(torch.arange(10))
    assert asked > 0
    assert manager_of(streamed).stats().diverged == before


def test_slots_that_are_read_late_never_show_old_weights(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every read is delayed and the memory poisoned before it: a race would show as NaN."""
    import random
    import time

    from lading.checkpoint.reading import OpenFile

    fill = OpenFile.fill

    def slow(self: OpenFile, memory: memoryview, offset: int) -> None:
        memory[:] = b"\xff" * len(memory)
        time.sleep(random.random() / 200)
        fill(self, memory, offset)

    resident = load_model(Odd, odd, torch_dtype=None)
    monkeypatch.setattr(OpenFile, "fill", slow)
    streamed = load_model(Odd, odd, torch_dtype=None, memory_limit="120kB")
    with torch.no_grad():
        for _ in range(5):
            assert torch.equal(streamed(torch.arange(10)), resident(torch.arange(10)))


def test_a_manager_takes_examples_and_refuses_before_anything_is_read(odd: Path) -> None:
    checkpoint = open_checkpoint(odd)
    with torch.device("meta"):
        module = Odd()
    weights = {name: Weight(Origin.of(checkpoint[name]), torch.float32) for name, _ in module.named_parameters()}
    with pytest.raises(MemoryLimitError):
        Manager(module, weights, checkpoint.inventories, Limits(10_000), {"forward": ((torch.arange(10),), {})})
    manager = Manager(module, weights, checkpoint.inventories, Limits(150_000), {"forward": ((torch.arange(10),), {})})
    assert "streamed" in str(manager.plan)
    assert manager.plan.activation_bytes > 0


def draw(pipeline: Any, steps: int, guidance: float) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    images: torch.Tensor = pipeline(
        "a large green star on a navy background",
        generator=torch.Generator().manual_seed(3),
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="pt",
    ).images
    return images


def test_a_pipeline_draws_the_same_picture_in_6_mb() -> None:
    resident, streamed = load_pipeline("shapes"), load_pipeline("shapes", memory_limit="6MB")
    for steps, guidance in ((3, 7.5), (3, 1.0), (2, 3.0)):
        assert torch.equal(draw(streamed, steps, guidance), draw(resident, steps, guidance))
    assert str(streamed.device) == "cpu"
    assert streamed.components.keys() == resident.components.keys()


def test_a_component_out_of_its_phase_holds_no_memory() -> None:
    pipeline = load_pipeline("shapes", memory_limit="30MB")
    active: list[list[str]] = []

    def look(pipe: Any, _step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        managers = {name: manager_of(part) for name, part in pipe.components.items() if hasattr(part, "lading_manager")}
        active.append([name for name, manager in managers.items() if manager.active])
        return tensors

    pipeline.set_progress_bar_config(disable=True)
    pipeline("a red star on a white background", num_inference_steps=2, callback_on_step_end=look)
    assert active == [["unet"], ["unet"]]


class Remembering(torch.nn.Module):
    """A module that computes something once and keeps it, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(4))
        self.kept: dict[int, torch.Tensor] = {}

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        waves = self.kept.setdefault(len(state), torch.outer(torch.arange(float(len(state))), torch.ones(32)).cos())
        for block in self.blocks:
            state = block(state) * waves
        return state


def test_a_module_that_keeps_what_it_computed_keeps_nothing_of_the_trace(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(Remembering().state_dict(), tmp_path / "model.safetensors")
    resident = load_model(Remembering, tmp_path / "model.safetensors", torch_dtype=None)
    streamed = load_model(Remembering, tmp_path / "model.safetensors", torch_dtype=None, memory_limit="40kB")
    with torch.no_grad():
        for rows in (5, 5, 7):
            assert torch.equal(streamed(noise(rows, 32)), resident(noise(rows, 32)))
    assert manager_of(streamed).plan.activation_bytes > 0


def test_what_would_be_lost_is_refused(odd: Path) -> None:
    streamed = load_model(Odd, odd, torch_dtype=None, memory_limit="120kB")
    resident = load_model(Odd, odd, torch_dtype=None)
    with torch.no_grad():
        expected = resident(torch.arange(10))
        assert torch.equal(streamed(torch.arange(10)), expected)
        with pytest.raises(LadingError, match="cannot be loaded: it is streamed"):
            streamed.load_state_dict(resident.state_dict())
        own = streamed.blocks[1].weight
        streamed.blocks[1].weight = torch.nn.Parameter(torch.zeros(64, 64), requires_grad=False)
        with pytest.raises(LadingError, match=r"blocks\.1\.weight .* another tensor in its place"):
            streamed(torch.arange(10))
        streamed.blocks[1].weight = own
        assert torch.equal(streamed(torch.arange(10)), expected)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_merged_adapters_are_refused_and_leave_no_trace() -> None:
    folder = shipped_model() / "unet"
    resident = load_model(UNet2DConditionModel, folder, torch_dtype="float32")
    streamed = load_model(UNet2DConditionModel, folder, torch_dtype="float32", memory_limit="9MB")
    with torch.no_grad():
        for model in (resident, streamed):
            add_adapter(model, "one", 1)
        assert torch.equal(run_unet(streamed), run_unet(resident))
        streamed.fuse_lora()
        with pytest.raises(LadingError, match=r"adapters are merged.*unfuse_lora"):
            run_unet(streamed)
        streamed.unfuse_lora()
        assert torch.equal(run_unet(streamed), run_unet(resident))


def test_the_next_component_begins_to_come_where_memory_is_left() -> None:
    pipeline = load_pipeline("shapes", memory_limit="40MB")
    read: list[int] = []

    def look(pipe: Any, _step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        read.append(manager_of(pipe.vae).stats().read_bytes)
        return tensors

    pipeline.set_progress_bar_config(disable=True)
    pipeline("a red star on a white background", num_inference_steps=2, callback_on_step_end=look)
    assert read[0] > 0
    assert not manager_of(pipeline.unet).active


def test_an_interruption_while_weights_come_leaves_the_next_call_right(
    odd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamed, resident = (
        load_model(Odd, odd, torch_dtype=None, memory_limit="120kB"),
        load_model(Odd, odd, torch_dtype=None),
    )
    wait, waits = Reading.wait, 0

    def interrupted(self: Reading) -> None:
        nonlocal waits
        waits += 1
        if waits % 5 == 0:
            self.cancel()
            raise KeyboardInterrupt
        wait(self)

    interruptions = 0
    with torch.no_grad():
        expected = resident(torch.arange(10))
        monkeypatch.setattr(Reading, "wait", interrupted)
        for _ in range(12):
            try:
                assert torch.equal(streamed(torch.arange(10)), expected)
            except KeyboardInterrupt:
                interruptions += 1
    assert interruptions > 2


def test_a_pipeline_as_large_as_sd15_draws_the_same_picture_in_a_quarter_of_its_size(tmp_path: Path) -> None:
    from bench.checkpoints import write_pipeline

    write_pipeline(tmp_path)

    def draw_small(pipeline: Any) -> torch.Tensor:
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        size = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "pt"}
        images: torch.Tensor = pipeline("a red circle", generator=generator, **size).images[0]
        return images

    expected = draw_small(load_pipeline(tmp_path, torch_dtype="bfloat16"))
    streamed = load_pipeline(tmp_path, torch_dtype="bfloat16", memory_limit="500MB")
    assert torch.equal(draw_small(streamed), expected)
    assert manager_of(streamed.unet).plan.placement.streamed_bytes > 1.2e9


class Normalised(torch.nn.Module):
    """A module that holds a tensor that it computed, as those with the older weight normalisation do."""

    def __init__(self) -> None:
        super().__init__()
        first = torch.nn.Linear(32, 32)
        self.blocks = torch.nn.ModuleList([first, *(torch.nn.Linear(32, 32) for _ in range(3))])
        self.__dict__["computed"] = first.weight * 2

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            state = block(state)
        return state


def test_a_module_that_holds_computed_tensors_is_traced() -> None:
    trace_of = trace(Normalised(), (torch.zeros(1, 32),))
    assert [call.leaf for call in trace_of.calls] == [f"blocks.{number}" for number in range(4)]
