"""From a folder to what is learnt from: found, told, refused, encoded once, and anew where something changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

import lading
from lading import ComponentError, LadingError
from lading.training import Settings, Watcher, train_model
from lading.training.buckets import fit, make_buckets, nearest_bucket
from lading.training.dataset import Example, read_folder
from lading.training.order import Order
from lading.training.parts import examine
from lading.training.pictures import measure, read_pixels
from lading.training.preparation import Framed, Preparation, PreparedExamples, frame_examples
from lading.training.store import Store
from tests.training.tiny import write_data

CPU = torch.device("cpu")


class Notes(Watcher):
    """Remembers how much of what was encoded, and what was told."""

    def __init__(self) -> None:
        self.phases: dict[str, int] = {}
        self.told: list[str] = []

    def phase(self, title: str, total: int) -> None:
        self.phases[title] = total

    def tell(self, message: str) -> None:
        self.told.append(message)


def prepare(
    data: Path, cache: Path, model: Path | str = "shapes", dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[dict[str, int], Any]:
    """Prepare a folder; return how much was encoded, and the examples."""
    notes, settings, parts = Notes(), Settings(**options), examine(model)
    framed = frame_examples(read_folder(data), parts, settings, notes)
    store = Store(cache)
    _, prepared = Preparation(parts, settings, dtype, CPU, store, notes).prepare(framed)
    return notes.phases, PreparedExamples(prepared, store, settings.caption_dropout)


def test_a_changed_caption_picture_or_setting_encodes_exactly_its_entries_again(tmp_path: Path) -> None:
    data, cache, model = write_data(tmp_path / "data"), tmp_path / "cache", tmp_path / "model"
    shutil.copytree(lading.shipped_model(), model)
    assert prepare(data, cache, model)[0] == {"captions": 4, "pictures": 4}
    assert prepare(data, cache, model)[0] == {}
    lines = (data / "metadata.jsonl").read_text().splitlines()
    lines[1] = json.dumps({"file_name": "1.png", "text": "another caption"})
    (data / "metadata.jsonl").write_text("\n".join(lines))
    assert prepare(data, cache, model)[0] == {"captions": 1}
    Image.new("RGB", (64, 64), "red").save(data / "2.png")
    assert prepare(data, cache, model)[0] == {"pictures": 1}
    assert prepare(data, cache, model, flip=True)[0] == {"pictures": 4}
    assert prepare(data, cache, model, caption_dropout=0.1)[0] == {"captions": 1}
    assert prepare(data, cache, model, dtype=torch.bfloat16)[0] == {"captions": 4}
    assert prepare(data, cache, model, resolution=32)[0] == {"captions": 4, "pictures": 4}
    _nudge(model / "vae/diffusion_pytorch_model.safetensors")
    assert prepare(data, cache, model)[0] == {"captions": 0, "pictures": 4}
    _nudge(model / "text_encoder/model.safetensors")
    assert prepare(data, cache, model)[0] == {"captions": 4}


def _nudge(file: Path) -> None:
    """Change one number of one tensor; size and time of the file may stay as they were."""
    tensors = load_file(file)
    name = min(tensors)
    tensors[name].view(-1)[0] += 1
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_damaged_entry_of_the_cache_is_made_again(tmp_path: Path) -> None:
    data, cache = write_data(tmp_path / "data", count=2), tmp_path / "cache"
    prepare(data, cache)
    latent = next(file for file in cache.rglob("*.safetensors") if "mean" in lading.open_checkpoint(file))
    whole = {name: tensor.clone() for name, tensor in load_file(latent).items()}
    latent.write_bytes(latent.read_bytes()[:-10])
    assert prepare(data, cache)[0] == {"pictures": 1}
    assert all(torch.equal(whole[name], tensor) for name, tensor in load_file(latent).items())


def test_latents_are_those_of_the_autoencoder_in_float32_whatever_the_dtype_of_the_run(tmp_path: Path) -> None:
    """Some autoencoders overflow in half precision."""
    data = write_data(tmp_path / "data", count=1)
    vae: Any = lading.load_component("shapes", "vae", torch_dtype="float32")
    pixels = np.asarray(Image.open(data / "0.png"), dtype=np.float32) / 127.5 - 1
    with torch.no_grad():
        expected = vae.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None]).latent_dist
    for dtype in (torch.float32, torch.bfloat16):
        prepare(data, tmp_path / str(dtype), dtype=dtype)
        files = (tmp_path / str(dtype)).rglob("*.safetensors")
        (latents,) = (tensors for file in files if "mean" in (tensors := load_file(file)))
        torch.testing.assert_close(latents["mean"], expected.mean * vae.config.scaling_factor, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(latents["deviation"], expected.std * vae.config.scaling_factor, rtol=1e-5, atol=1e-6)


def test_a_draw_depends_on_its_generator_alone(tmp_path: Path) -> None:
    _, examples = prepare(write_data(tmp_path / "data"), tmp_path / "cache", flip=True, caption_dropout=0.5)
    draws = [examples.draw(1, torch.Generator().manual_seed(seed)) for seed in (3, 3, *range(20))]
    assert torch.equal(draws[0].latents, draws[1].latents)
    assert len({tuple(draw.latents.flatten().tolist()) for draw in draws}) > 10
    texts = [draw.conditions.arguments["encoder_hidden_states"] for draw in draws]
    empty = sum(not torch.equal(text, texts[0]) for text in texts)
    assert 0 < empty < len(texts)


def test_captions_of_which_a_tokenizer_reads_only_the_beginning_are_told(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", count=1)
    (data / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "a red star on " * 12}))
    notes, parts = Notes(), examine("shapes")
    framed = frame_examples(read_folder(data), parts, Settings(), notes)
    Preparation(parts, Settings(), torch.float32, CPU, Store(tmp_path / "cache"), notes).prepare(framed)
    (told,) = notes.told
    assert told.startswith("tokenizer reads 32 of the 50 tokens of the caption 'a red star on")


def test_captions_come_from_lines_tables_and_texts_in_folders_of_any_depth(tmp_path: Path) -> None:
    for place in ("a.png", "b/c.jpg", "b/d.webp", "e/f.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / place)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "one"}\n\n')
    (tmp_path / "b/metadata.csv").write_text('\ufefffile_name,text\nc.jpg,"two, and more"\n', encoding="utf-8")
    (tmp_path / "b/d.txt").write_text("three\n")
    (tmp_path / "e/metadata.jsonl").write_text('{"file_name": "f.png", "caption": "four"}')
    found = [(str(example.file.relative_to(tmp_path)), example.caption) for example in read_folder(tmp_path)]
    assert found == [("a.png", "one"), ("b/c.jpg", "two, and more"), ("b/d.webp", "three"), ("e/f.png", "four")]


def _picture(folder: Path, name: str = "a.png") -> Path:
    Image.new("RGB", (8, 8)).save(folder / name)
    return folder / name


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an empty folder": (lambda _: None, "there is no picture in it: put"),
    "no caption": (lambda folder: _picture(folder), r"1 pictures have no caption: a\.png: write one"),
    "no picture": (
        lambda folder: (_picture(folder), (folder / "metadata.jsonl").write_text('{"file_name": "b.png", "text": ""}')),
        r"captions without a picture: b\.png: bring them",
    ),
    "no JSON": (
        lambda folder: (_picture(folder), (folder / "metadata.jsonl").write_text("{")),
        r"metadata\.jsonl: row 1 is not valid JSON",
    ),
    "no columns": (
        lambda folder: (_picture(folder), (folder / "metadata.csv").write_text("name,words\na.png,b\n")),
        r"metadata\.csv: row 1 has no file_name and text or caption or prompt: it has name, words",
    ),
    "a way out": (
        lambda folder: (_picture(folder), (folder / "metadata.csv").write_text("file_name,text\n../a.png,b\n")),
        r"row 1 names '\.\./a\.png', which is outside of",
    ),
    "no UTF-8": (
        lambda folder: (_picture(folder), (folder / "a.txt").write_bytes(b"\xff\xfe\x00")),
        r"a\.txt: it is not UTF-8 .* save it as UTF-8",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_folder_is_said(fault: str, tmp_path: Path) -> None:
    make, message = FAULTS[fault]
    make(tmp_path)
    with pytest.raises(LadingError, match=message):
        read_folder(tmp_path)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(LadingError, match="there is no such folder"):
        read_folder(tmp_path / "nowhere")


def test_a_corrupt_picture_ends_the_run_by_name_or_is_left_out(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", count=3)
    (data / "0.png").write_bytes(b"no picture")
    whole = (data / "1.png").read_bytes()
    (data / "1.png").write_bytes(whole[: len(whole) - 60])  # its header is right, its pixels end early
    parts = examine("shapes")
    with pytest.raises(LadingError, match=r"0\.png: it cannot be read as a picture"):
        frame_examples(read_folder(data), parts, Settings(), Notes())
    phases, examples = prepare(data, tmp_path / "cache", on_bad="skip")
    assert phases["pictures"] == 2 and len(examples) == 1
    (data / "2.png").write_bytes(b"")
    with pytest.raises(LadingError, match="none of the pictures can be read: nothing is left"):
        prepare(data, tmp_path / "cache", on_bad="skip")


def test_a_run_at_a_size_below_the_models_least_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LadingError, match="resolution 4 is below 8, the least that the model makes: raise it"):
        frame_examples(read_folder(write_data(tmp_path)), examine("shapes"), Settings(resolution=4), Notes())


def test_pictures_of_every_mode_and_turn_become_pixels(tmp_path: Path) -> None:
    red = Image.new("RGBA", (6, 4), (255, 0, 0, 0))
    for mode, name in (("RGBA", "a.png"), ("P", "b.png"), ("L", "c.png"), ("CMYK", "d.jpg"), ("I;16", "e.png")):
        (red if mode == "RGBA" else Image.new(mode, (6, 4))).save(tmp_path / name)
        pixels = read_pixels(tmp_path / name, fit(4, 6, make_buckets(4, 1)[0]), None)
        assert pixels.shape[0] == 3 and -1 <= float(pixels.min()) <= float(pixels.max()) <= 1
    assert float(read_pixels(tmp_path / "a.png", fit(4, 6, make_buckets(4, 1)[0]), None).min()) == 1, "white ground"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 10)).save(tmp_path / "turned.jpg", exif=exif)
    assert measure(tmp_path / "turned.jpg") == (30, 10, 1)


@given(st.integers(1, 8), st.integers(8, 64), st.floats(1.0, 4.0))
def test_buckets_are_multiples_of_one_area_and_hold_the_square(unit: int, cells: int, aspect: float) -> None:
    buckets = make_buckets(unit * cells, unit, aspect)
    side = unit * cells
    assert any(bucket.height == bucket.width == side for bucket in buckets)
    for bucket in buckets:
        assert bucket.height % unit == bucket.width % unit == 0
        assert bucket.height * bucket.width <= side * side
        assert max(bucket.height / bucket.width, bucket.width / bucket.height) <= aspect
    assert {(bucket.width, bucket.height) for bucket in buckets} == {(b.height, b.width) for b in buckets}


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_a_picture_fills_its_bucket_and_is_cut_along_one_side_at_most(height: int, width: int) -> None:
    bucket = nearest_bucket(height, width, make_buckets(512, 16))
    placed = fit(height, width, bucket)
    assert placed.resized[0] >= bucket.height and placed.resized[1] >= bucket.width
    assert placed.resized[0] == bucket.height or placed.resized[1] == bucket.width
    assert 0 <= placed.top <= placed.resized[0] - bucket.height and placed.left >= 0


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 6), st.integers(0, 5))
def test_every_example_is_in_one_batch_of_each_epoch(buckets: list[int], size: int, seed: int) -> None:
    order = Order(tuple(buckets), size, seed)
    for epoch in range(2):
        batches = [order.batch(epoch * order.batches + place) for place in range(order.batches)]
        assert sorted(index for batch in batches for index in batch) == list(range(len(buckets)))
        assert all(1 <= len(batch) <= size for batch in batches)
        mixed = [batch for batch in batches if len({buckets[index] for index in batch}) > 1]
        assert sum(len(batch) for batch in mixed) <= (size - 1) * len(set(buckets)) + size


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 4))
def test_processes_see_together_what_one_sees_alone(examples: int, size: int, processes: int) -> None:
    order = Order((0,) * examples, size, 7)
    alone = [batch for step in range(3) for batch in order.step(step, processes)]
    shared = [
        batch
        for step in range(3)
        for rank in range(processes)
        for batch in order.step(step, processes)[rank::processes]
    ]
    assert sorted(alone) == sorted(shared)


def test_framing_keeps_what_sdxl_is_told(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    (framed,) = frame_examples([Example(tmp_path / "a.png", "")], examine("shapes"), Settings(), Notes())
    assert isinstance(framed, Framed)
    assert (framed.extent.original, framed.extent.crop[0]) == ((100, 200), 0)
    assert framed.extent.height < framed.extent.width


def test_a_variant_is_read_wherever_a_component_has_it(
    tiny_model: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    plain, mixed = tiny_model("SD3"), tmp_path / "mixed"
    shutil.copytree(plain, mixed)
    for file in (*mixed.glob("transformer/*.safetensors"), *mixed.glob("text_encoder/*.safetensors")):
        file.rename(file.with_suffix(".fp16.safetensors"))
    settings = Settings(steps=1, batch_size=2, rank=2, validation_prompts=("red",), validation_steps=1)
    expected = train_model(plain, pictures, tmp_path / "plain", settings)
    found = train_model(mixed, pictures, tmp_path / "out", settings, variant="fp16")
    assert found.files[0].read_bytes() == expected.files[0].read_bytes()
    with pytest.raises(ComponentError, match="no component has weights of variant 'bf16'"):
        train_model(mixed, pictures, tmp_path / "other", settings, variant="bf16")
