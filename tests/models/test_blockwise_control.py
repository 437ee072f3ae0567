"""ControlNets on a Qwen-Image transformer and its pipeline: what they add, when, and that they leave nothing behind."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel, UNet2DConditionModel

import lading
from lading.models import BlockwiseControl, QwenImageBlockwiseControlNet, attach, condition_tokens
from tests.models.tiny import DIM, LAYERS, call, controlnet, draw, noise, picture, pipeline, saved, transformer


def control(seed: int = 1, **options: Any) -> BlockwiseControl:
    return BlockwiseControl(controlnet(seed), noise(10 + seed, 1, 6, 64), **options)


def by_hand(denoiser: Any, controls: list[BlockwiseControl], **options: int) -> torch.Tensor:
    """A controlled call with the transformer's blocks replaced, without a hook."""
    changed = copy.copy(denoiser)
    changed.__dict__["_modules"] = dict(denoiser._modules)
    changed.transformer_blocks = torch.nn.ModuleList(
        Controlled(block, number, controls) for number, block in enumerate(denoiser.transformer_blocks)
    )
    return call(changed, **options)


class Controlled(torch.nn.Module):
    """A block and what the ControlNets add to the first six tokens after it."""

    def __init__(self, block: torch.nn.Module, number: int, controls: list[BlockwiseControl]) -> None:
        super().__init__()
        self.block, self.number, self.controls = block, number, controls

    def forward(self, **inputs: Any) -> Any:
        text, image = self.block(**inputs)
        before = image[:, :6].clone()
        for one in self.controls:
            condition = one.network.img_in(one.condition)
            image[:, :6] += one.scale * one.network.controlnet_blocks[self.number](before, condition)
        return text, image


@pytest.mark.parametrize("pictures", [1, 2])
@pytest.mark.parametrize("batch", [1, 2])
def test_what_controls_compute_is_added_after_each_block_to_the_picture_that_is_drawn(
    pictures: int, batch: int
) -> None:
    denoiser = transformer()
    plain = call(denoiser, pictures=pictures, batch=batch)
    for controls in ([control()], [control(1, scale=0.5), control(2, scale=-2.0)]):
        expected = by_hand(denoiser, controls, pictures=pictures, batch=batch)
        with attach(denoiser, *controls):
            found = call(denoiser, pictures=pictures, batch=batch)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found, plain, rtol=1e-2, atol=1e-2)


def hooks(module: torch.nn.Module) -> list[int]:
    return [
        len(part._forward_hooks) + len(part._forward_pre_hooks) + len(part._forward_hooks_with_kwargs)
        for part in module.modules()
    ]


def test_detaching_leaves_the_transformer_as_it_was() -> None:
    denoiser = transformer()
    before, plain = hooks(denoiser), call(denoiser)
    attachment = attach(denoiser, control())
    assert hooks(denoiser) != before
    assert not torch.equal(call(denoiser), plain)
    attachment.detach()
    assert hooks(denoiser) == before
    assert torch.equal(call(denoiser), plain)
    with pytest.raises(RuntimeError, match="on purpose"), attach(denoiser, control()):
        raise RuntimeError("on purpose")
    assert hooks(denoiser) == before
    assert torch.equal(call(denoiser), plain)


def test_a_copy_of_a_controlled_transformer_is_free() -> None:
    denoiser = transformer()
    plain = call(denoiser)
    with attach(denoiser, control()):
        assert torch.equal(call(copy.deepcopy(denoiser)), plain)


def test_a_scale_of_zero_is_no_control_bit_for_bit() -> None:
    denoiser = transformer()
    plain = call(denoiser)
    with attach(denoiser, control(scale=0)):
        assert torch.equal(call(denoiser), plain)
    with attach(denoiser, control(1), control(2, scale=0)):
        both = call(denoiser)
    with attach(denoiser, control(1)):
        assert torch.equal(call(denoiser), both)


def test_a_pipeline_is_controlled_and_free_again() -> None:
    made = pipeline()
    plain = draw(made)
    one = BlockwiseControl(controlnet(), condition_tokens(made, picture()))
    with attach(made, one):
        assert not torch.equal(draw(made), plain)
    assert torch.equal(draw(made), plain)


class Counting(QwenImageBlockwiseControlNet):
    """Counts the calls of the transformer in which it acts."""

    def __init__(self) -> None:
        super().__init__(num_layers=LAYERS, dim=DIM)
        self.calls = 0
        self.img_in.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.calls += 1


@pytest.mark.parametrize(
    ("start", "end", "steps", "acting"),
    [(0, 1, 5, 5), (0, 0.5, 5, 3), (0.5, 1, 5, 3), (0.25, 0.75, 5, 3), (0, 0, 5, 1), (1, 1, 5, 1), (0, 0.5, 1, 1)],
)
@pytest.mark.parametrize("guided", [False, True])
def test_a_control_acts_in_the_steps_from_its_start_to_its_end(
    start: float, end: float, steps: int, acting: int, guided: bool
) -> None:
    made, network = pipeline(), Counting()
    options: dict[str, Any] = {}
    if guided:
        options["negative_prompt_embeds"] = noise(8, 1, 4, 24)
        options["negative_prompt_embeds_mask"] = torch.ones(1, 4, dtype=torch.long)
        options["true_cfg_scale"] = 2.0
    with attach(made, BlockwiseControl(network, noise(9, 1, 6, 64), start=start, end=end)):
        for run in (1, 2):
            draw(made, steps=steps, **options)
            assert network.calls == run * acting * (2 if guided else 1)


def test_steps_before_the_start_are_those_without_a_control() -> None:
    made = pipeline()
    seen: dict[str, list[torch.Tensor]] = {"plain": [], "late": []}

    def look(name: str) -> Any:
        def keep(_pipeline: Any, _step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            seen[name].append(tensors["latents"])
            return tensors

        return keep

    draw(made, steps=5, callback_on_step_end=look("plain"))
    with attach(made, control(start=0.5)):
        draw(made, steps=5, callback_on_step_end=look("late"))
    same = [torch.equal(one, other) for one, other in zip(seen["plain"], seen["late"], strict=True)]
    assert same == [True, True, False, False, False]


def test_streamed_equals_resident_bit_for_bit(tmp_path: Path) -> None:
    transformer().save_pretrained(tmp_path / "transformer")
    files = [saved(controlnet(seed), tmp_path / str(seed)) for seed in (1, 2)]
    config = {"num_layers": LAYERS, "dim": DIM}

    def load(limit: int | None, control_limit: int | None) -> tuple[Any, list[BlockwiseControl]]:
        denoiser = lading.load_model(
            QwenImageTransformer2DModel, tmp_path / "transformer", torch_dtype=None, memory_limit=limit
        )
        networks = [
            lading.load_model(
                QwenImageBlockwiseControlNet, file, config=config, torch_dtype=None, memory_limit=control_limit
            )
            for file in files
        ]
        controls = zip(networks, (1.0, 0.5), strict=True)
        return denoiser, [BlockwiseControl(network, noise(11, 1, 6, 64), scale=scale) for network, scale in controls]

    denoiser, controls = load(None, None)
    plain = call(denoiser)
    with attach(denoiser, *controls):
        expected = call(denoiser)
    for limit, control_limit in ((1_300_000, None), (None, 60_000), (1_300_000, 60_000)):
        denoiser, controls = load(limit, control_limit)
        for _ in range(2):
            assert torch.equal(call(denoiser), plain)
            with attach(denoiser, *controls):
                for _ in range(3):
                    assert torch.equal(call(denoiser), expected)
        for module, under in ((denoiser, limit), *((one.network, control_limit) for one in controls)):
            if under is not None:
                assert lading.manager_of(module).plan.placement.slots
                assert lading.manager_of(module).plan.peak_bytes <= under


def test_a_control_that_is_attached_first_leaves_the_plan_of_a_streamed_transformer_as_it_is(tmp_path: Path) -> None:
    transformer().save_pretrained(tmp_path)
    plans = []
    for attached in (False, True):
        denoiser = lading.load_model(QwenImageTransformer2DModel, tmp_path, torch_dtype=None, memory_limit=1_300_000)
        with attach(denoiser, *[control()] * attached):
            call(denoiser)
        plans.append(lading.manager_of(denoiser).plan)
    assert plans[0].activation_bytes == plans[1].activation_bytes > 0
    assert plans[0].placement.resident == plans[1].placement.resident


def test_a_streamed_controlnet_that_has_run_once_reads_ahead(tmp_path: Path) -> None:
    file = saved(controlnet(num_layers=16), tmp_path)
    config = {"num_layers": 16, "dim": DIM}
    network = lading.load_model(
        QwenImageBlockwiseControlNet, file, config=config, torch_dtype=None, memory_limit=150_000
    )
    stream, condition = noise(1, 1, 6, DIM), noise(2, 1, 6, 64)
    with torch.no_grad():
        network(stream, condition)
        manager = lading.manager_of(network)
        assert manager.plan.activation_bytes > 0
        assert manager.plan.placement.slots
        before = manager.stats().diverged
        projected = network.img_in(condition)
        for _ in range(2):
            for block in network.controlnet_blocks:
                block(stream, projected)
    assert manager.stats().diverged <= before + 1


def test_gradients_reach_a_controlnet_also_through_checkpointed_blocks() -> None:
    found = []
    for checkpointed in (False, True):
        denoiser, one = transformer(), control()
        denoiser.requires_grad_(False)
        if checkpointed:
            denoiser.enable_gradient_checkpointing()
        with attach(denoiser, one), torch.enable_grad():
            output = denoiser(
                hidden_states=noise(5, 1, 6, 64),
                encoder_hidden_states=noise(6, 1, 5, 24),
                encoder_hidden_states_mask=None,
                timestep=torch.full((1,), 0.5),
                img_shapes=[[(1, 2, 3)]],
            ).sample
            torch.autograd.backward(output.square().sum())
        gradients = [parameter.grad for parameter in one.network.parameters()]
        found.append([gradient for gradient in gradients if gradient is not None])
        assert len(found[-1]) == len(gradients)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_what_does_not_fit_is_refused_and_says_what_to_do() -> None:
    with pytest.raises(lading.ShapeError, match=r"shape \(1, 6, 68\).*\(batch, tokens, 64\).*use condition_tokens"):
        BlockwiseControl(controlnet(), noise(1, 1, 6, 68))
    shallow = BlockwiseControl(controlnet(num_layers=2), noise(1, 1, 6, 64))
    with pytest.raises(lading.ComponentError, match=r"2 blocks of width 48.* has 4 of width 48: load the ControlNet"):
        attach(transformer(), shallow)
    unet = lading.load_component("shapes", "unet")
    assert isinstance(unet, UNet2DConditionModel)
    with pytest.raises(lading.ComponentError, match="UNet2DConditionModel has 0 of width None"):
        attach(unet, control())
    with pytest.raises(lading.ComponentError, match="no scheduler that counts its steps: attach it to the pipeline"):
        attach(transformer(), control(end=0.5))
    compiled = transformer()
    compiled.transformer_blocks[1].compile(backend="eager")
    with pytest.raises(lading.ComponentError, match=r"is compiled.*attach ControlNets to a transformer that is not"):
        attach(compiled, control())
    denoiser = transformer()
    for condition, sizes in ((noise(1, 1, 8, 64), "1 x 8 tokens for 1 x 6"), (noise(1, 3, 6, 64), "3 x 6")):
        with (
            attach(denoiser, BlockwiseControl(controlnet(), condition)),
            pytest.raises(lading.ShapeError, match=f"{sizes}.*height and width that the pipeline draws"),
        ):
            call(denoiser)


def test_controls_and_attachments_print_what_they_do() -> None:
    with attach(pipeline(), control(), control(2, scale=0.5, start=0.2)) as attachment:
        assert str(attachment) == "scale 1, steps 0 to 1, 6 tokens\nscale 0.5, steps 0.2 to 1, 6 tokens"
