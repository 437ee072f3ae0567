"""Files in the names of models' makers: through every key map to the network, resident, on demand and streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lading import MemoryLimitError, identify, load_model, manager_of
from lading.catalog import find_architecture
from tests.catalog.networks import shallow
from tests.catalog.test_against_diffusers import CASES
from tests.loading.networks import Case, write

HUNYUAN = {"num_layers": 2, "num_single_layers": 2, "text_embed_dim": 8, "pooled_projection_dim": 8} | {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "rope_axes_dim": (4, 6, 6),
}
COGVIDEOX = find_architecture("cogvideox", "diffusers.CogVideoXTransformer3DModel").published["zai-org/CogVideoX-2b"]
SOUND = find_architecture("ltx", "diffusers.AutoencoderKLLTX2Audio").published["Lightricks/LTX-2"]
LAYOUTS = {
    label: Case(family, name, "original (stacked)" if "stacked" in label else "original", config, prefix)
    for label, (family, name, prefix, config, _) in CASES.items()
    if label != "FLUX.1"
} | {
    "LTX-2 sound": Case(
        "ltx", "diffusers.AutoencoderKLLTX2Audio", "original", {**SOUND, "base_channels": 8}, "audio_vae."
    ),
    "HunyuanVideo": Case("hunyuan_video", "diffusers.HunyuanVideoTransformer3DModel", "original", HUNYUAN),
    "CogVideoX": Case(
        "cogvideox",
        "diffusers.CogVideoXTransformer3DModel",
        "original",
        {**shallow(dict(COGVIDEOX)), "num_attention_heads": 1},
    ),
}


@pytest.mark.filterwarnings("ignore:.*autocast")  # what Mochi wants of float32 where torch has it for 16 bits alone
@pytest.mark.parametrize("label", LAYOUTS)
def test_a_file_in_its_makers_names_gives_back_every_value_resident_on_demand_and_streamed(
    tmp_path: Path, label: str
) -> None:
    case = LAYOUTS[label]
    file, tensors = write(tmp_path, case)
    (candidate,) = {
        (one.model_class, one.layout): one
        for one in identify(file).candidates
        if (one.model_class, one.layout) == (case.name, case.layout)
    }.values()
    options: dict[str, Any] = {"config": case.config, "torch_dtype": None}
    with pytest.raises(MemoryLimitError) as too_small:
        load_model(candidate, file, **options, memory_limit=1000)
    for way in ({}, {"use_disk_map": True}, {"memory_limit": too_small.value.minimum}):
        network: Any = load_model(candidate, file, **options, **way)
        state = network.state_dict()
        assert state.keys() == tensors.keys()
        assert all(torch.equal(state[name], tensors[name]) for name in tensors)
    assert manager_of(network).plan.placement.slots
