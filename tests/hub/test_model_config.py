"""`ModelConfig`: documented meaning, no network where none is wanted, nothing outside its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from lading import DownloadError, ModelConfig
from lading.hub.selection import wanted_files


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base folder that holds one model, and a hub that may not be asked."""
    folder = tmp_path / "org" / "name"
    shards = [f"t/m-{number}.safetensors" for number in (10, 9)]
    for file in ("model_index.json", "vae/a.safetensors", "vae/config.json", *shards):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("x")
    monkeypatch.setenv("LADING_SKIP_DOWNLOAD", "true")
    monkeypatch.setenv("LADING_MODEL_BASE_PATH", str(tmp_path))
    return folder


def resolved(pattern: str | list[str] | None) -> str | list[str]:
    config = ModelConfig(model_id="org/name", origin_file_pattern=pattern)
    config.download_if_necessary()
    assert config.path is not None
    return config.path


def test_a_path_is_kept_and_needs_no_network() -> None:
    config = ModelConfig(path="somewhere/model.safetensors")
    config.download_if_necessary()
    assert config.path == "somewhere/model.safetensors"
    single = ModelConfig(path=["model.safetensors"])
    single.download_if_necessary()
    assert single.path == "model.safetensors"


def test_one_match_is_a_string_and_several_are_sorted_naturally(models: Path) -> None:
    assert resolved("vae/*.safetensors") == str(models / "vae/a.safetensors")
    assert resolved("t/m-*.safetensors") == [str(models / f"t/m-{number}.safetensors") for number in (9, 10)]
    assert resolved(["vae/a.safetensors", "t/m-9.safetensors"]) == [
        str(models / "t/m-9.safetensors"),
        str(models / "vae/a.safetensors"),
    ]


@pytest.mark.parametrize("pattern", [None, "", "./"])
def test_no_pattern_means_the_whole_folder(models: Path, pattern: str | None) -> None:
    assert resolved(pattern) == str(models)


def test_a_folder_is_its_own_path_as_tokenizers_want_it(models: Path) -> None:
    assert resolved("vae/") == str(models / "vae")
    assert resolved(["t/", "vae/*.json"]) == [str(models / "t"), str(models / "vae/config.json")]


def test_a_star_stays_inside_a_folder_and_two_do_not(models: Path) -> None:
    with pytest.raises(DownloadError, match="no file matches"):
        resolved("*.safetensors")
    assert resolved("**/a.safetensors") == str(models / "vae/a.safetensors")
    assert resolved("t/m-[0-9].safetensors") == str(models / "t/m-9.safetensors")


def test_nothing_matched_is_an_error_that_lists_what_is_there(models: Path) -> None:
    with pytest.raises(DownloadError, match=r"'unet/\*'.*model_index\.json"):
        resolved("unet/*")


@pytest.mark.parametrize("pattern", ["../*", "/etc/*", "vae/../../*", "C:/*", "..\\*", "vae/\0"])
def test_a_pattern_that_leaves_the_folder_is_refused(models: Path, pattern: str) -> None:
    with pytest.raises(DownloadError, match="leaves the model's folder"):
        resolved(pattern)


@pytest.mark.parametrize(
    "model_id", ["../name", "/etc", "..", ".", "org/..", "org\\name", "org/na\0me", "C:/x", "a/b/c"]
)
def test_a_model_id_that_leaves_the_base_folder_is_refused(models: Path, model_id: str) -> None:
    with pytest.raises(DownloadError, match="not the id of a model"):
        ModelConfig(model_id=model_id, origin_file_pattern="*").download_if_necessary()


def test_neither_path_nor_id_is_an_error() -> None:
    with pytest.raises(DownloadError, match="names nothing"):
        ModelConfig().download_if_necessary()


def test_an_unknown_source_is_an_error(tmp_path: Path) -> None:
    config = ModelConfig(model_id="org/name", download_source="floppy", local_model_path=str(tmp_path))
    with pytest.raises(DownloadError, match="'floppy' is unknown"):
        config.download_if_necessary()


def test_the_environment_of_diffsynth_is_honoured_and_ladings_own_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Path
) -> None:
    monkeypatch.delenv("LADING_SKIP_DOWNLOAD")
    monkeypatch.setenv("DIFFSYNTH_SKIP_DOWNLOAD", "True")
    monkeypatch.setenv("DIFFSYNTH_MODEL_BASE_PATH", "/nowhere")
    assert resolved("") == str(models)
    monkeypatch.delenv("LADING_MODEL_BASE_PATH")
    with pytest.raises(DownloadError, match="/nowhere"):
        resolved("")


def test_the_eight_offload_keys_come_as_a_dict() -> None:
    config = ModelConfig(path="x", offload_device="disk", computation_dtype="bfloat16")
    assert len(config.vram_config()) == 8
    assert config.vram_config()["offload_device"] == "disk"
    assert config.vram_config()["computation_dtype"] == "bfloat16"


def test_of_a_repository_only_the_needed_weights_are_wanted() -> None:
    weights = [f"unet/diffusion_pytorch_model{suffix}" for suffix in (".bin", ".safetensors", ".fp16.safetensors")]
    names = ["README.md", "v1-5.ckpt", "model_index.json", "unet/config.json", *weights, "vae/config.json", "vae/x.bin"]
    plain = ["model_index.json", "unet/config.json", weights[1], "vae/config.json", "vae/x.bin"]
    assert wanted_files(names, None, None) == plain
    assert wanted_files(names, ["unet"], "fp16") == ["model_index.json", "unet/config.json", weights[2]]
