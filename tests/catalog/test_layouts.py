"""The 54 published layouts: each is told, with a config that makes every name and shape of it again."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lading import identify
from lading.catalog import find_architecture
from lading.catalog.construction import verify, verify_candidates
from lading.checkpoint import open_checkpoint
from tests.conftest import write_sparse

LAYOUTS: dict[str, Any] = json.loads(
    gzip.decompress((Path(__file__).parent.parent / "data" / "layouts.json.gz").read_bytes())
)
SDXL = "SDXL sd_xl_base_1.0.safetensors (inverted, 4 models)"
BARE = {"no": "hub", "vision_model.": "hub"}
"""Two labels say what the names begin with instead of where they come from."""


@pytest.mark.parametrize("label", [label for label in LAYOUTS if label != SDXL])
def test_a_published_layout_is_told_and_rebuilt_to_every_name_and_shape(tmp_path: Path, label: str) -> None:
    layout = LAYOUTS[label]
    found = identify(write_sparse(tmp_path / "model.safetensors", layout["tensors"]))
    best = found.best
    assert best is not None
    assert best.model_class is not None
    assert best.model_class == layout["model_class"].partition("(")[0].partition("+")[0]
    word = layout["layout"].split()[0].rstrip(",")
    assert best.layout.split()[0] == BARE.get(word, word)
    assert best.match == "hash"
    assert found.hash == layout["hash"]
    architecture = find_architecture(best.family, best.model_class)
    shapes = {name.removeprefix(best.prefix): tuple(shape) for name, shape in layout["tensors"].items()}
    assert verify(architecture, best.config, best.layout, shapes) == []
    if "ref_conv" in layout["model_class"] or "extra_condition_channels" in layout["model_class"]:
        assert any("which diffusers" in problem and "cannot hold" in problem for problem in found.problems)
    assert not any("missing" in problem for problem in found.problems)


def test_the_four_models_of_a_single_file_sdxl_are_told_and_rebuilt(tmp_path: Path) -> None:
    file = write_sparse(tmp_path / "model.safetensors", LAYOUTS[SDXL]["tensors"])
    found = identify(file)
    first = {candidate.prefix: candidate for candidate in reversed(found.candidates)}
    assert {prefix: candidate.model_class for prefix, candidate in first.items()} == {
        "model.diffusion_model.": "diffusers.UNet2DConditionModel",
        "first_stage_model.": "diffusers.AutoencoderKL",
        "conditioner.embedders.0.transformer.": "transformers.CLIPTextModel",
        "conditioner.embedders.1.model.": "transformers.CLIPTextModelWithProjection",
    }
    assert found.best is first["model.diffusion_model."]
    assert first["first_stage_model."].config["scaling_factor"] == 0.13025, "as the UNet beside it wants it"
    assert first["first_stage_model."].layout == first["model.diffusion_model."].layout == "original"
    faults = verify_candidates(open_checkpoint(file), found)
    assert len(faults) == len(found.candidates)
    assert not any(faults.values())
