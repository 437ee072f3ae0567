"""What is recorded is what happened, and nothing happens otherwise because it is recorded."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    WanPipeline,
    WanTransformer3DModel,
)
from safetensors.torch import save_file

import lading
from lading import LadingError, events
from lading.catalog.origin import find_origins
from lading.checkpoint import open_checkpoint
from lading.devices.fake import FakeDevice
from lading.memory import Manager
from lading.memory.image import Weight
from lading.memory.limits import Limits
from lading.report import Run
from lading.report.journey import journey
from tests.report.conftest import LIMIT, STEPS, Recorded, draw


def told(run: Run) -> list[str]:
    """Every boundary in a line, those of calls alike in one."""
    lines = []
    for stage in journey(run.calls):
        times = "" if stage.steps is None else f", steps {stage.steps[0]} to {stage.steps[1]}"
        lines.append(f"{stage.part}.{stage.entry} x {stage.calls}{times}")
        lines += [f"  in   {tensor}" for tensor in stage.given] + [f"  out  {tensor}" for tensor in stage.made]
    return lines


@pytest.mark.parametrize("limit", [None, LIMIT])
def test_a_recording_changes_no_bit_of_the_picture(limit: int | None, limited: Recorded) -> None:
    pipeline = lading.load_pipeline("shapes", memory_limit=limit)
    plain = draw(pipeline)
    with lading.record(pipeline):
        recorded = draw(pipeline)
    assert np.array_equal(np.asarray(recorded), np.asarray(plain))
    assert np.array_equal(np.asarray(limited.picture), np.asarray(plain))


def test_every_boundary_has_its_axes_dtype_and_device(limited: Recorded) -> None:
    assert told(limited.run) == [
        "text_encoder.forward x 2",
        "  in   input_ids  batch 1  tokens 32  int64  cpu",
        "  out  last_hidden_state  batch 1  tokens 32  features 128  float32  cpu",
        "  out  pooler_output  batch 1  features 128  float32  cpu",
        "pipeline.prepare_latents x 1",
        "  out  output  batch 1  channels 4  height 8  width 8  float32  cpu",
        f"unet.forward x {STEPS}, steps 1 to {STEPS}",
        "  in   sample  batch 2  channels 4  height 8  width 8  float32  cpu",
        "  in   timestep  a number  int64  cpu",
        "  in   encoder_hidden_states  batch 2  tokens 32  features 128  float32  cpu",
        "  out  output  batch 2  channels 4  height 8  width 8  float32  cpu",
        "vae.decode x 1",
        "  in   z  batch 1  channels 4  height 8  width 8  float32  cpu",
        "  out  output  batch 1  channels 3  height 64  width 64  float32  cpu",
        "pipeline.postprocess x 1",
        "  in   image  batch 1  channels 3  height 64  width 64  float32  cpu",
        "  out  output  height 64  width 64  bands 3  uint8  cpu",
    ]


def test_each_step_has_its_time_its_latent_and_what_it_read(limited: Recorded) -> None:
    steps = limited.run.steps
    assert [step.number for step in steps] == [1, 2, 3, 4]
    assert [step.timestep for step in steps] == [999.0, 749.0, 499.0, 249.0]
    assert all(step.forwards == 1 and step.read_bytes > 0 and 0 <= step.waited < step.seconds for step in steps)
    assert all(one.end == other.start for one, other in pairwise(steps))
    assert [step.latent.extent for step in steps if step.latent] == ["batch 2  channels 4  height 8  width 8"] * 4


def test_each_component_is_told_from_its_name_to_its_object(limited: Recorded) -> None:
    records = {record.name: record for record in limited.pipeline.lading_components.records}
    assert [part.name for part in limited.run.parts] == list(records)
    for part in limited.run.parts:
        record = records[part.name]
        assert (part.loader, part.model_class, part.files) == (record.loader, record.model_class, record.files)
        assert (part.tensors, part.dtype, part.device) == (record.tensors, record.dtype, record.device)
        assert bool(part.ways) == bool(part.tensors)
    assert {span.name for span in limited.run.lane("load")} == set(records)


def test_what_each_part_holds_is_counted_and_stays_within_its_plan(limited: Recorded) -> None:
    run = limited.run
    for series in run.memory.weights:
        plan = lading.manager_of(limited.pipeline.components[series.name]).plan
        assert 0 < series.peak <= max(plan.placement.nbytes + plan.other_bytes, LIMIT)
        assert list(series.times) == sorted(series.times)
        assert series.times[-1] == run.seconds
    assert {series.name for series in run.memory.weights} == {"text_encoder", "unet", "vae"}
    moments = sorted({time for series in run.memory.weights for time in series.times})
    for moment in moments:
        held = 0
        for series in run.memory.weights:
            held += next(v for t, v in reversed(list(zip(series.times, series.values, strict=True))) if t <= moment)
        assert held <= LIMIT
    assert run.memory.limit == LIMIT
    assert run.memory.measured is not None
    assert run.fits


def test_what_was_predicted_stands_beside_what_was_measured(limited: Recorded) -> None:
    plan = lading.manager_of(limited.pipeline.unet).plan
    found = {(one.part, one.quantity): one for one in limited.run.comparisons}
    assert found["unet", "peak memory"].predicted == plan.peak_bytes
    assert found["unet", "streamed in a call"].measured == plan.placement.streamed_bytes
    assert found["unet", "time of a call"].predicted == plan.placement.seconds
    assert found["unet", "time of a call"].measured
    assert ("vae", "time of a call") not in found, "one call tells nothing of those after it"


def test_a_module_alone_is_recorded_and_every_byte_that_it_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(256, 256, bias=False) for _ in range(16))).eval()
    manager = lading.manage(model, "2MB", example_inputs=(torch.empty(1, 256),))
    assert isinstance(manager, Manager)
    with torch.no_grad(), lading.record(model) as recording:
        for _ in range(3):
            model(torch.ones(1, 256))
    run = recording.run
    assert [call.label for call in run.calls] == ["Sequential.forward"] * 3
    assert [str(tensor) for tensor in run.calls[0].given] == ["input  1 x 256  float32  cpu"]
    assert sum(span.nbytes for span in run.lane("read")) == pytest.approx(manager.stats().read_bytes, rel=0.1)
    assert manager.stats().read_bytes > 4_000_000
    waited = sum(span.end - span.start for span in run.lane("wait"))
    assert waited == pytest.approx(manager.stats().waited_seconds, rel=0.2, abs=0.01)


def test_copies_to_a_device_are_timed_by_the_device(tmp_path: Path) -> None:
    module = torch.nn.Sequential(*(torch.nn.Linear(64, 64, bias=False) for _ in range(12))).eval()
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    weights = {name: Weight(origin, torch.float32) for name, origin in find_origins(None, checkpoint).items()}
    limits = Limits(100_000, 10**9, FakeDevice(link_bytes_per_second=2e7))
    given = torch.ones(1, 64)
    manager = Manager(module, weights, checkpoint.inventories, limits, {"forward": ((given,), {})})
    with torch.no_grad(), lading.record(module) as recording:
        for _ in range(3):
            module(given)
    copies = recording.run.lane("copy")
    assert sum(copy.nbytes for copy in copies) == manager.stats().copied_bytes
    assert all(one.end <= other.start for one, other in pairwise(copies)), "one queue, one order"
    assert all(copy.end - copy.start >= 0.9 * copy.nbytes / 2e7 for copy in copies)
    manager.release()


def test_guidance_in_two_passes_is_two_forwards_of_one_step() -> None:
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16, text_dim=16, freq_dim=32,
        ffn_dim=32, num_layers=1,
    )  # fmt: skip
    vae = AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = WanPipeline(None, None, vae, scheduler, transformer)
    pipeline.set_progress_bar_config(disable=True)
    embeds = torch.randn(1, 6, 16)
    with lading.record(pipeline) as recording:
        pipeline(
            prompt_embeds=embeds, negative_prompt_embeds=-embeds, height=32, width=48, num_frames=5,
            num_inference_steps=3, output_type="np",
        )  # fmt: skip
    run = recording.run
    assert [(step.forwards, step.latent.extent) for step in run.steps if step.latent] == [
        (2, "batch 1  channels 16  frames 2  height 4  width 6")
    ] * 3
    decoded = next(call for call in run.calls if call.label == "vae.decode")
    assert decoded.made[0].extent == "batch 1  channels 3  frames 5  height 32  width 48"
    assert [part.loader for part in run.parts] == [""] * len(run.parts), "lading did not load it"


def test_tokens_of_a_packed_latent_are_named_so() -> None:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    vae = AutoencoderKL(
        latent_channels=16, block_out_channels=(8, 8, 8, 8), norm_num_groups=2, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.36, shift_factor=0.12,
    )  # fmt: skip
    pipeline = FluxPipeline(FlowMatchEulerDiscreteScheduler(), vae, None, None, None, None, transformer)
    pipeline.set_progress_bar_config(disable=True)
    with lading.record(pipeline) as recording:
        pipeline(
            prompt_embeds=torch.randn(1, 6, 16), pooled_prompt_embeds=torch.randn(1, 8), height=32, width=48,
            num_inference_steps=2,
        )  # fmt: skip
    run = recording.run
    assert [step.latent.extent for step in run.steps if step.latent] == ["batch 1  tokens 6  features 64"] * 2
    drawn = next(call for call in run.calls if call.entry == "prepare_latents")
    assert drawn.made[0].extent == "batch 1  tokens 6  features 64"
    decoded = next(call for call in run.calls if call.label == "vae.decode")
    assert decoded.given[0].extent == "batch 1  channels 16  height 4  width 6"


def test_a_pipeline_is_left_as_it_was_and_not_kept() -> None:
    pipeline = lading.load_pipeline("shapes")
    before = {name: dict(vars(part)) for name, part in pipeline.components.items() if hasattr(part, "__dict__")}
    own = set(vars(pipeline)) | {"_callback_tensor_inputs"}
    with lading.record(pipeline) as recording:
        draw(pipeline, num_inference_steps=1)
    for name, attributes in before.items():
        assert vars(pipeline.components[name]).keys() == attributes.keys()
    unet = pipeline.unet
    assert not unet._forward_hooks and not unet._forward_pre_hooks
    assert not {"prepare_latents"} & (set(vars(pipeline)) - own)
    assert "postprocess" not in vars(pipeline.image_processor)
    gone = weakref.ref(unet)
    del pipeline, unet, before, attributes
    gc.collect()
    assert gone() is None
    assert recording.run.steps


def test_what_failed_is_recorded_too_and_nothing_stays_behind() -> None:
    pipeline = lading.load_pipeline("shapes")

    def stop(*_: Any) -> None:
        raise ValueError("as the test wants")

    with pytest.raises(ValueError, match="as the test wants"), lading.record(pipeline) as recording:
        draw(pipeline, callback_on_step_end=stop)
    assert [call.label for call in recording.run.calls][-1] == "unet.forward, step 1"
    assert not pipeline.unet._forward_hooks and "prepare_latents" not in vars(pipeline)
    assert not events.wanted()
    with pytest.raises(RuntimeError), lading.record(pipeline.vae) as recording:
        pipeline.vae.decode(torch.ones(1, 5, 8, 8))
    assert [(call.label, call.made) for call in recording.run.calls] == [("AutoencoderKL.decode", ())]
    assert "decode" not in vars(pipeline.vae)


def test_two_recordings_see_each_its_own() -> None:
    one, other = (torch.nn.Linear(4, size) for size in (2, 3))
    with lading.record(one) as first, lading.record(other) as second:
        one(torch.ones(1, 4))
        other(torch.ones(1, 4))
        one(torch.ones(5, 4))
    assert [call.made[0].shape for call in first.run.calls] == [(1, 2), (5, 2)]
    assert [call.made[0].shape for call in second.run.calls] == [(1, 3)]


def test_a_compiled_module_is_not_compiled_again() -> None:
    import torch._dynamo

    compiled = []

    def backend(graph: Any, _inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    class Network(torch.nn.Module):
        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return given.sin() + 1

    torch._dynamo.reset()
    model = Network()
    model.compile(backend=backend)
    try:
        expected = model(torch.ones(1, 4))
        with lading.record(model) as recording:
            assert torch.equal(model(torch.ones(1, 4)), expected)
        assert torch.equal(model(torch.ones(1, 4)), expected)
    finally:
        torch._dynamo.reset()
    assert len(compiled) == 1
    assert [str(one) for one in recording.run.calls[0].given] == ["given  1 x 4  float32  cpu"]


def test_what_cannot_be_recorded_says_why(tmp_path: Path) -> None:
    with pytest.raises(LadingError, match="no module, and no pipeline"), lading.record("shapes"):
        pass
    with lading.record(torch.nn.Linear(2, 2)) as recording:
        with pytest.raises(LadingError, match="recorded already"):
            recording.watch(torch.nn.Linear(2, 2))
        with pytest.raises(LadingError, match="not over"):
            recording.save_trace(tmp_path / "trace.json")
    for save in (recording.save_trace, recording.save_report):
        with pytest.raises(LadingError, match="create it first"):
            save(tmp_path / "absent" / "file")
        with pytest.raises(LadingError, match="is a folder"):
            save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_nobody_is_told_anything_while_nobody_records() -> None:
    assert not events.wanted()
    clock = Mock(return_value=0.0)
    with events.span("read", "a", None, clock=clock):
        pass
    clock.assert_not_called()
