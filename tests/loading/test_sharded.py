"""Processes that hold a network together read their own rows of it, and no more.

One process stands for each of them in turn: loading sends nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

import lading
from lading import CheckpointError, LadingError, load_model
from lading.catalog.registry import find_architecture
from lading.events import Event, told_to
from tests.loading.tiny_networks import tiny_flux


@contextmanager
def process(rank: int, *shape: int) -> Iterator[DeviceMesh]:
    """Be one process of a mesh."""
    size = torch.Size(shape).numel()
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        names = ("replicas", "shards")[-len(shape) :]
        yield init_device_mesh("cpu", shape, mesh_dim_names=names)
    finally:
        dist.destroy_process_group()


def parts(size: int, network_class: type, path: Path, **options: Any) -> list[dict[str, torch.Tensor]]:
    """What each of several processes holds of a network's parameters."""
    held = []
    for rank in range(size):
        with process(rank, size) as mesh:
            network: Any = load_model(network_class, path, device_mesh=mesh, **options)
            held.append({name: _local(each) for name, each in network.named_parameters()})
    return held


def _local(parameter: torch.Tensor) -> torch.Tensor:
    assert isinstance(parameter, DTensor)
    return parameter.to_local()


@pytest.mark.parametrize(("size", "dtype"), [(2, None), (3, "bfloat16")])
def test_the_rows_of_all_processes_together_are_the_network(size: int, dtype: str | None, tmp_path: Path) -> None:
    tiny_flux().save_pretrained(tmp_path)
    expected = load_model(FluxTransformer2DModel, tmp_path, torch_dtype=dtype).state_dict()
    found = parts(size, FluxTransformer2DModel, tmp_path, torch_dtype=dtype)
    for name, tensor in expected.items():
        together = torch.cat([each[name] for each in found])
        assert together.dtype == tensor.dtype and torch.equal(together, tensor), name
        chunks = [len(chunk) for chunk in tensor.chunk(size)]
        assert [len(each[name]) for each in found] == [*chunks, *[0] * (size - len(chunks))]


def test_each_process_reads_about_its_share_of_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=128,
        num_attention_heads=4,
        joint_attention_dim=512,
        pooled_projection_dim=256,
    )
    network.save_pretrained(tmp_path)
    nbytes = lading.open_checkpoint(tmp_path).nbytes
    monkeypatch.setenv("LADING_READ", "buffered")
    for rank in range(2):
        reads = Reads()
        with process(rank, 2) as mesh, told_to(reads):
            load_model(FluxTransformer2DModel, tmp_path, torch_dtype=None, device_mesh=mesh)
        assert 0.49 * nbytes < reads.nbytes < 0.53 * nbytes


class Reads:
    """Counts bytes that are read."""

    def __init__(self) -> None:
        self.nbytes = 0

    def add(self, event: Event) -> None:
        if event.kind == "read":
            self.nbytes += event.nbytes


def test_a_layout_that_is_not_the_networks_own_is_cut_to_rows_as_well(tmp_path: Path) -> None:
    network = tiny_flux()
    state = network.state_dict()
    architecture = find_architecture("flux", "diffusers.FluxTransformer2DModel")
    key_map = architecture.key_map("original", {name: tuple(tensor.shape) for name, tensor in state.items()})
    assert key_map is not None
    file = tmp_path / "flux.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in key_map.inverse.tensors(state)}, file)
    found = parts(2, FluxTransformer2DModel, file, config=dict(network.config), torch_dtype=None)
    for name, tensor in state.items():
        assert torch.equal(torch.cat([each[name] for each in found]), tensor), name


def test_a_mesh_of_two_dimensions_repeats_what_it_spreads_and_blocks_are_gathered_one_by_one(tmp_path: Path) -> None:
    tiny_flux().save_pretrained(tmp_path)
    expected = load_model(FluxTransformer2DModel, tmp_path).state_dict()
    with process(3, 2, 2) as mesh:
        network = load_model(FluxTransformer2DModel, tmp_path, device_mesh=mesh)
        gathered = [name for name, part in network.named_modules() if isinstance(part, FSDPModule)]
        assert gathered == ["", *(f"{kind}.{number}" for kind in BLOCKS for number in range(2))]
        for name, parameter in network.named_parameters():
            assert torch.equal(_local(parameter), expected[name].chunk(2)[1])


BLOCKS = ("transformer_blocks", "single_transformer_blocks")


def test_what_does_not_match_or_does_not_go_with_a_mesh_is_refused(tmp_path: Path) -> None:
    tiny_flux().save_pretrained(tmp_path)
    config = {**tiny_flux().config, "num_layers": 3}
    with process(0, 2) as mesh:
        with pytest.raises(CheckpointError, match=r"do not match FluxTransformer2DModel: missing"):
            load_model(FluxTransformer2DModel, tmp_path, config=config, device_mesh=mesh)
        with pytest.raises(LadingError, match="device_mesh goes with no memory_limit"):
            load_model(FluxTransformer2DModel, tmp_path, memory_limit="1GB", device_mesh=mesh)
