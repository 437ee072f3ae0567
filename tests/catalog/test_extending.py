"""Networks of others: registered by a program or offered by an installed package, and then as those that ship."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

import lading
from lading import IdentificationError, identify, manager_of
from lading.catalog import Shapes, registry
from lading.catalog.architecture import Architecture, Config, Extent, Inputs, InputSpec
from lading.catalog.construction import verify_candidates
from lading.catalog.recognition import identify_tensors
from lading.checkpoint import open_checkpoint


class TwoLayers(torch.nn.Module):
    """A network of a user's own."""

    def __init__(self, width: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.enter = torch.nn.Linear(3, width)
        self.stack = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for layer in self.stack:
            x = layer(x)
        return x


def infer_two_layers(shapes: Shapes) -> dict[str, Any]:
    return {"width": shapes.size("enter.weight"), "depth": shapes.count("stack")}


def two_layers_inputs(_config: Config, extent: Extent) -> Inputs:
    return {"x": InputSpec((extent.batch, 3))}


def two_layers(name: str = f"{__name__}.TwoLayers") -> Architecture:
    return Architecture(
        "denoiser",
        name,
        infer_two_layers,
        two_layers_inputs,
        {"mine/small": {"width": 4, "depth": 2}},
        lora_targets=("enter",),
    )


@pytest.fixture(autouse=True)
def _only_shipped() -> Iterator[None]:
    yield
    registry._registered.clear()
    registry._classes.clear()
    registry.registered_signatures.cache_clear()
    registry.registered_lora_bases.cache_clear()
    registry._load_entry_points_once.cache_clear()


def test_a_registered_network_is_recognised_and_verified_like_the_others(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(TwoLayers(8, 5).state_dict(), file)
    assert identify(file).best is None
    lading.register_architecture(two_layers(), family="mine")
    found = identify(file)
    assert found.best is not None
    name = f"{__name__}.TwoLayers"
    assert (found.best.family, found.best.component, found.best.model_class) == ("mine", "denoiser", name)
    assert found.best.config == {"width": 8, "depth": 5}
    (faults,) = verify_candidates(open_checkpoint(file), found).values()
    assert faults == []


def test_a_class_that_no_module_holds_is_registered_itself(tmp_path: Path) -> None:
    class Inner(TwoLayers):
        pass

    file = tmp_path / "model.safetensors"
    save_file(Inner(8, 5).state_dict(), file)
    lading.register_architecture(two_layers("nowhere.Inner"), family="mine", network=Inner)
    found = identify(file)
    assert found.best is not None
    assert found.best.model_class == "nowhere.Inner"
    (faults,) = verify_candidates(open_checkpoint(file), found).values()
    assert faults == []


def test_a_registered_network_is_planned_before_its_first_call_and_streamed(tmp_path: Path) -> None:
    """It keeps no config: that of its example call is told from its shapes."""
    file = tmp_path / "model.safetensors"
    save_file(TwoLayers(128, 12).state_dict(), file)
    lading.register_architecture(two_layers(), family="mine")
    best = identify(file).best
    assert best is not None
    limit = 400_000
    streamed = lading.load_model(TwoLayers, file, best.config, torch_dtype=None, memory_limit=limit)
    plan = manager_of(streamed).plan
    assert plan.placement.slots
    assert plan.activation_bytes > 0, "a call was traced"
    assert plan.peak_bytes <= limit
    whole = lading.load_model(TwoLayers, file, best.config, torch_dtype=None)
    with torch.no_grad():
        assert torch.equal(streamed(torch.ones(1, 3)), whole(torch.ones(1, 3)))
    assert manager_of(streamed).plan.placement == plan.placement, "the example was the call"


def test_a_lora_of_a_registered_network_is_told_and_loaded(tmp_path: Path) -> None:
    lading.register_architecture(two_layers(), family="mine")
    config = LoraConfig(r=2, target_modules=["enter", "stack.1"], init_lora_weights=False)
    trained = get_peft_model(TwoLayers(), config)
    trained.save_pretrained(str(tmp_path))
    lora = identify(tmp_path).lora
    assert lora is not None
    assert lora.base is not None
    assert (lora.base.family, lora.base.match) == ("mine", "depth and widths")
    assert lora.made_for == "mine/small (mine)"
    network = TwoLayers()
    network.load_state_dict({key: value for key, value in trained.unload().state_dict().items() if "lora" not in key})
    assert lading.load_lora(network, tmp_path).layers == {"denoiser": 2}


def install(folder: Path, module: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a distribution on the path, as pip does, whose entry point names a value in its module."""
    (folder / "lading_plug_in.py").write_text(module)
    (folder / "lading_plug_in-1.dist-info").mkdir()
    (folder / "lading_plug_in-1.dist-info" / "METADATA").write_text("Name: lading_plug_in\nVersion: 1\n")
    (folder / "lading_plug_in-1.dist-info" / "entry_points.txt").write_text(
        f"[lading.architectures]\nplugged = {value}\n"
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "lading_plug_in", raising=False)
    registry._load_entry_points_once.cache_clear()


PLUG_IN = """
import torch
from lading.catalog import Architecture, Family

class Plugged(torch.nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.plug = torch.nn.Linear(width, 7)

ARCHITECTURE = Architecture(
    "adapter",
    "lading_plug_in.Plugged",
    lambda shapes: {"width": shapes.size("plug.weight", 1)},
    None,
    {"it": {"width": 2}},
    lora_targets=("plug",),
)
FAMILY = Family("whole_family", (ARCHITECTURE,))

def architecture():
    return ARCHITECTURE

def family():
    return FAMILY
"""
TENSORS = {"plug.weight": (7, 30), "plug.bias": (7,)}
PLUGGED_LORA = {"plug.lora_A.weight": (2, 30), "plug.lora_B.weight": (7, 2)}


@pytest.mark.parametrize(
    ("value", "family"),
    [("ARCHITECTURE", "plugged"), ("architecture", "plugged"), ("FAMILY", "whole_family"), ("family", "whole_family")],
)
def test_an_installed_package_offers_its_networks_through_an_entry_point(
    value: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert identify_tensors(TENSORS).best is None
    install(tmp_path, PLUG_IN, f"lading_plug_in:{value}", monkeypatch)
    best = identify_tensors(TENSORS).best
    assert best is not None
    assert (best.family, best.component, best.config) == (family, "adapter", {"width": 30})


def test_a_lora_of_an_installed_packages_network_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, PLUG_IN, "lading_plug_in:family", monkeypatch)
    lora = identify_tensors(PLUGGED_LORA).lora
    assert lora is not None
    assert lora.base is not None
    assert lora.base.model_class == "lading_plug_in.Plugged"


def test_a_process_of_its_own_sees_what_is_installed_and_pays_for_it_only_when_nothing_else_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, PLUG_IN, "lading_plug_in:ARCHITECTURE", monkeypatch)
    save_file({name: torch.zeros(shape) for name, shape in TENSORS.items()}, tmp_path / "plugged.safetensors")
    program = "import sys, lading; print(lading.identify(sys.argv[1]).best.model_class, 'torch' in sys.modules)"
    path = os.pathsep.join((str(tmp_path), *sys.path))
    for file, printed in (
        (lading.shipped_model() / "vae", "diffusers.AutoencoderKL False"),
        (tmp_path / "plugged.safetensors", "lading_plug_in.Plugged True"),
    ):
        run = [sys.executable, "-c", program, str(file)]
        done = subprocess.run(run, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path})
        assert done.stdout.strip() == printed


BROKEN = {
    "no such module": ("", "lading_no_plug_in:family", r"ModuleNotFoundError: No module named 'lading_no_plug_in'"),
    "no such name": ("", "lading_plug_in:family", r"AttributeError: .*'family'"),
    "a module that fails": ("1 / 0", "lading_plug_in:family", r"ZeroDivisionError"),
    "a function that fails": ("def family(): raise RuntimeError('not today')", "lading_plug_in:family", "not today"),
    "something else": ("family = 3", "lading_plug_in:family", r"it gives 3, and must name a Family, an Architecture"),
    "a class that is not there": (
        PLUG_IN.replace('"lading_plug_in.Plugged"', '"lading_plug_in.Gone"'),
        "lading_plug_in:ARCHITECTURE",
        r"lading_plug_in\.Gone: this class is not installed",
    ),
    "a config that the class does not take": (
        PLUG_IN.replace('{"width": 2}}', '{"height": 2}}'),
        "lading_plug_in:ARCHITECTURE",
        r"lading_plug_in\.Plugged cannot be built from its config",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_entry_point_is_one_error_that_names_it(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, value, reason = BROKEN[what]
    install(tmp_path, module, value, monkeypatch)
    with pytest.raises(IdentificationError, match=reason) as refused:
        identify_tensors(TENSORS)
    named = f"the entry point 'plugged' of lading_plug_in in lading.architectures, {value}, fails: "
    assert str(refused.value).startswith(named)
    assert identify(lading.shipped_model() / "vae").best is not None, "what lading knows needs nobody else"


def test_a_registered_network_that_cannot_be_built_is_named() -> None:
    lading.register_architecture(two_layers("nowhere.TwoLayers"), family="mine")
    with pytest.raises(IdentificationError, match=r"the registered family 'mine': nowhere\.TwoLayers"):
        identify_tensors(TENSORS)
