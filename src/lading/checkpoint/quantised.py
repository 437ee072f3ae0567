"""Quantised checkpoints: which tensors are weights, how each is stored, and which only tell how. Plain Python.

A weight goes by the network's name for it, in the network's shape. What tells that is in the names, dtypes and shapes
of the header, in safetensors' metadata, and in small tensors that hold JSON.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from lading.checkpoint.encoding import Companion, Encoding, ForeignEncoding, ScaledCodes, encoding_of_package
from lading.checkpoint.header import TensorInfo
from lading.checkpoint.inventory import Checkpoint
from lading.errors import CheckpointError
from lading.sizes import DTYPE_BITS

_MAX_JSON_BYTES = 4096
_MAX_JSON_TENSORS = 20_000


@dataclass(frozen=True)
class Weights:
    """What a checkpoint holds for a network.

    Attributes:
        tensors: by the network's names.
        schemes: how weights are stored -> how many are stored so; empty where nothing is quantised.
        companions: names in the file of tensors that only tell how to decode others.
        remedies: what lading cannot decode, and what to do.
    """

    tensors: Mapping[str, TensorInfo]
    schemes: Mapping[str, int]
    companions: frozenset[str]
    remedies: tuple[str, ...]

    @property
    def shapes_known(self) -> bool:
        """Whether all shapes are those of the network."""
        encodings = (info.encoding for info in self.tensors.values())
        return all(one.shape_known for one in encodings if isinstance(one, ForeignEncoding))


def find_weights(checkpoint: Checkpoint) -> Weights:
    """Tell the weights of a checkpoint from what quantisation added to it.

    Raises:
        CheckpointError: what tells how to decode a weight is damaged.
    """
    described = _described_by_torchao(checkpoint.metadata)
    sorter, ends = _Sorter(checkpoint), tuple(_MARKS)
    for name in checkpoint:
        if name.endswith(ends):
            mark = next(end for end in ends if name.endswith(end))
            _MARKS[mark](sorter, name, name[: -len(mark)])
    for weight, description in described.items():
        sorter.torchao(weight, description)
    sorter.drop_what_is_left()
    encodings = [info.encoding for info in sorter.weights.values() if info.encoding is not None]
    remedies = [f"{one.scheme}: {one.remedy}" for one in encodings if isinstance(one, ForeignEncoding)]
    return Weights(
        sorter.weights,
        dict(Counter(encoding.scheme for encoding in encodings).most_common()),
        frozenset(sorter.companions),
        tuple(dict.fromkeys(remedies)),
    )


def as_the_network_has_it(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose quantised weights are tensors like others, which are decoded when they are read.

    Raises:
        CheckpointError: lading cannot decode some; what can is named.
    """
    weights = find_weights(checkpoint)
    if weights.remedies:
        raise CheckpointError(f"{', '.join(map(str, checkpoint.files))}: quantised: {'; '.join(weights.remedies)}")
    return replace(checkpoint, tensors=weights.tensors)


class _Sorter:
    """Gives each weight its encoding; a weight that is not as expected stays as it is."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.weights: dict[str, TensorInfo] = dict(checkpoint.tensors)
        self.companions: set[str] = set()
        self._stored = checkpoint.tensors
        self._stamps = {inventory.file: inventory.stamp for inventory in checkpoint.inventories}
        self._layers: set[str] = set()
        self._described = _described_by_comfyui(checkpoint.metadata)
        self._read = 0

    def bitsandbytes_4bit(self, name: str, weight: str) -> None:
        """`weight.quant_state.bitsandbytes__nf4` holds JSON: shape, dtype, block size."""
        info, absmax, table = (self._stored.get(f"{weight}{end}") for end in ("", ".absmax", ".quant_map"))
        if info is None or absmax is None or table is None:
            return
        ends = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
        self._drop(name, *(f"{weight}{end}" for end in ends))
        state = self._json(name)
        if state is None:
            remedy = "its shapes are in the file, which is not here: fetch it"
            self._found(
                weight, replace(info, encoding=ForeignEncoding(f"bitsandbytes {name[-3:]}", 1, 1, remedy, False))
            )
            return
        shape, dtype, group = state.get("shape"), state.get("dtype"), state.get("blocksize")
        sizes = tuple(shape) if isinstance(shape, list) else (-1,)
        countable = all(type(size) is int and 0 <= size < 2**63 for size in sizes)
        scheme = f"bitsandbytes {name[-3:]}"
        if not countable or dtype not in ("float32", "float16", "bfloat16") or type(group) is not int or group < 1:
            raise self._damaged(name, f"describes no weight: {str(state)[:200]}")
        count = prod(sizes)
        groups = -(-count // group)
        if info.nbytes != -(-count // 2):
            raise self._damaged(weight, f"has {info.nbytes} bytes, {scheme} of shape {sizes} another number")
        expected = {f"{weight}.absmax": (absmax, groups), f"{weight}.quant_map": (table, 16)}
        nested = self._stored.get(f"{weight}.nested_absmax")
        scale_table = self._stored.get(f"{weight}.nested_quant_map")
        nested_group, offset = state.get("nested_blocksize", 1), state.get("nested_offset", 0.0)
        if nested is not None and scale_table is not None:
            if type(nested_group) is not int or nested_group < 1 or not isinstance(offset, (int, float)):
                raise self._damaged(name, f"describes no nested scales: {str(state)[:200]}")
            expected[f"{weight}.nested_absmax"] = (nested, -(-groups // nested_group))
            expected[f"{weight}.nested_quant_map"] = (scale_table, 256)
        else:
            nested = scale_table = None
        self._require_counts(scheme, expected)
        if absmax.dtype != ("float32" if scale_table is None else "uint8"):
            raise self._damaged(f"{weight}.absmax", f"is {absmax.dtype}, which {scheme} never writes")
        encoding = ScaledCodes(
            scheme,
            2,
            1,
            "high nibble first",
            self._companion(absmax),
            group,
            table=self._companion(table),
            scale_table=self._companion(scale_table) if scale_table is not None else None,
            nested=self._companion(nested) if nested is not None else None,
            nested_group=nested_group,
            offset=float(offset),
        )
        self._found(weight, replace(info, shape=sizes, dtype=dtype, encoding=encoding))

    def bitsandbytes_8bit(self, name: str, layer: str) -> None:
        """`SCB` holds the largest magnitude of each row, for which the code is 127."""
        info, scales = self._stored.get(f"{layer}.weight"), self._stored[name]
        if info is None or info.dtype != "int8" or not info.shape:
            return
        self._require_counts("bitsandbytes int8", {name: (scales, info.shape[0])})
        row = max(prod(info.shape[1:]), 1)
        companion = self._companion(scales)
        encoding: Encoding = ScaledCodes("bitsandbytes int8", 1, 1, "int8", companion, row, factor=1 / 127)
        order = self._stored.get(f"{layer}.weight_format")
        if order is not None and self._companion(order).is_here and any(self._companion(order).read()):
            encoding = ForeignEncoding(
                "bitsandbytes int8 in tiles", 1, 1, "its rows are in the order of a GPU: save it anew with bitsandbytes"
            )
        self._found(f"{layer}.weight", replace(info, dtype="float16", encoding=encoding), layer)
        self._drop(name, f"{layer}.weight_format")

    def scaled(self, name: str, layer: str) -> None:
        """A scale for the whole weight, for each row, or for each run of a row."""
        weight = f"{layer}.weight"
        info, scales = self._stored.get(weight), self._stored[name]
        if info is None or not info.shape or (not name.endswith(".scale_weight") and _has_all_its_bits(info)):
            return
        described = self._description(layer)
        second = self._stored.get(f"{layer}.weight_scale_2")
        kind = (described or {}).get("format") or ("nvfp4" if second is not None else info.dtype)
        if second is not None and prod(second.shape) != 1:
            raise self._damaged(f"{layer}.weight_scale_2", f"holds {prod(second.shape)} elements, not one")
        encoding = self._scaled_encoding(info, scales, second, str(kind), described)
        if encoding is None:
            return
        shape = (*info.shape[:-1], 2 * info.shape[-1]) if encoding.block == 2 else info.shape
        self._found(weight, replace(info, shape=shape, dtype="bfloat16", encoding=encoding), layer)
        self._drop(name, f"{layer}.weight_scale_2", f"{layer}.comfy_quant")

    def _description(self, layer: str) -> Mapping[str, Any] | None:
        """What ComfyUI says of a layer, in a tensor or in safetensors' metadata; None where it wrote no file."""
        if f"{layer}.comfy_quant" in self._stored:
            return self._json(f"{layer}.comfy_quant") or {}
        names = (layer, *(layer.removeprefix(prefix) for prefix in ("model.diffusion_model.", "diffusion_model.")))
        return next((self._described[name] for name in names if name in self._described), None)

    def _scaled_encoding(
        self,
        info: TensorInfo,
        scales: TensorInfo,
        second: TensorInfo | None,
        kind: str,
        described: Mapping[str, Any] | None,
    ) -> Encoding | None:
        count, rows, row = prod(scales.shape), info.shape[0], prod(info.shape[1:])
        companion = self._companion(scales)
        if kind == "nvfp4" and info.dtype == "uint8" and second is not None and len(info.shape) == 2:
            groups = 2 * row // 16
            comfy = described is not None
            if count != (_padded(rows, 128) * _padded(groups, 4) if comfy else rows * groups):
                return self._strange(kind, info)
            order, tiled = ("high nibble first", (rows, groups)) if comfy else ("low nibble first", None)
            whole = self._companion(second)
            return ScaledCodes(kind, 2, 1, order, companion, 16, scale_of_scales=whole, tiled=tiled)
        if kind == "mxfp8" and info.dtype.startswith("float8") and len(info.shape) == 2:
            groups = row // 32
            if scales.dtype == "uint8":
                companion = replace(companion, info=replace(scales, dtype="float8_e8m0fnu"))
            if count != _padded(rows, 128) * _padded(groups, 4):
                return self._strange(kind, info)
            return ScaledCodes(kind, 1, 1, info.dtype, companion, 32, tiled=(rows, groups))
        if info.dtype == "uint8":
            return None if described is None else self._strange(kind, info)
        if described is not None and described.get("convrot"):
            return self._strange(f"{kind} with rotated rows", info)
        scheme = f"scaled {info.dtype}"
        return self._by_rows(scheme, info, scales) or self._strange(f"{scheme} in blocks", info)

    def _by_rows(
        self, scheme: str, info: TensorInfo, scales: TensorInfo, zeros: TensorInfo | None = None
    ) -> ScaledCodes | None:
        """Codes with one scale for all of them or one for each row; None where there are others."""
        count, rows = prod(scales.shape), info.shape[0] if info.shape else 1
        nbytes, rest = divmod(DTYPE_BITS[info.dtype], 8)
        if rest or count not in (1, rows) or (zeros is not None and prod(zeros.shape) != count):
            return None
        elements = prod(info.shape)
        group = max(elements if count == 1 else elements // max(rows, 1), 1)
        between = None if zeros is None else self._companion(zeros)
        return ScaledCodes(scheme, 1, nbytes, info.dtype, self._companion(scales), group, zeros=between)

    def _strange(self, kind: str, info: TensorInfo) -> ForeignEncoding:
        known = info.dtype not in ("uint8", "int32")
        remedy = "lading decodes scaled float8 and int8, mxfp8 and nvfp4: load another file of this model"
        return ForeignEncoding(kind, 1, 1, remedy, known)

    def quanto(self, name: str, weight: str) -> None:
        """`weight._data` are the codes, `weight._scale` the rows' scales; packed codes are `weight._data._data`."""
        packed = weight.endswith("._data")
        weight = weight.removesuffix("._data")
        info, scales = self._stored[name], self._stored.get(f"{weight}._scale")
        if scales is None or weight in self._stored:
            return
        encoding: Encoding | None = None if packed else self._by_rows(f"quanto {info.dtype}", info, scales)
        if encoding is None:
            info = _in_two_axes(info)
            encoding = encoding_of_package("quanto, packed", "optimum-quanto", shape_known=False)
        layer = weight.rpartition(".")[0]
        self._found(weight, replace(info, dtype=scales.dtype, encoding=encoding), layer)
        self._drop(name, f"{weight}._scale", f"{weight}._shift")

    def torchao(self, weight: str, description: Mapping[str, Any]) -> None:
        """A weight of `a.b.weight` is several tensors, `a.b._weight_qdata` and such."""
        module, _, attribute = weight.rpartition(".")
        head = f"{module}{'.' if module else ''}_{attribute}_"
        codes, scales, zeros = (self._stored.get(f"{head}{part}") for part in ("qdata", "scale", "zero_point"))
        if codes is None or weight in self._stored:
            return
        kind, dtype = str(description.get("_type")), _torchao_dtype(description)
        encoding: Encoding | None = None
        if kind in ("Int8Tensor", "Float8Tensor") and scales is not None:
            encoding = self._by_rows(f"torchao {kind}", codes, scales, zeros)
        if encoding is None:
            known = kind in ("Int8Tensor", "Float8Tensor", "IntxUnpackedToInt8Tensor")
            encoding = encoding_of_package(f"torchao {kind}", "torchao", known)
            codes = _in_two_axes(codes)
        self._found(weight, replace(codes, dtype=dtype, encoding=encoding), module)
        self._drop(*(f"{head}{part}" for part in description["_tensor_data_names"]))

    def marker(self, name: str, _prefix: str) -> None:
        """`scaled_fp8` says with its dtype what the file's weights are, and they say it themselves."""
        self._drop(name)

    def drop_what_is_left(self) -> None:
        """Set aside what quantisers keep for activations."""
        ends = ("scale_input", "input_scale", "output_scale")
        self._drop(*(f"{layer}.{end}" for layer in self._layers for end in ends))

    def _found(self, weight: str, info: TensorInfo, layer: str | None = None) -> None:
        self._require_rows(info)
        self.weights[weight] = info
        self._layers.add(weight.rpartition(".")[0] if layer is None else layer)

    def _drop(self, *names: str) -> None:
        for name in names:
            if self.weights.pop(name, None) is not None:
                self.companions.add(name)

    def _companion(self, info: TensorInfo) -> Companion:
        self._require_rows(info)
        if info.dtype.startswith("complex"):
            raise CheckpointError(f"{info.file}: its scales are complex numbers: the file is damaged or hostile")
        return Companion(info, self._stamps[info.file])

    def _json(self, name: str) -> dict[str, Any] | None:
        """Read a tensor whose bytes are JSON; None where only the header is on this machine."""
        info = self._stored[name]
        if not self._companion(info).is_here:
            return None
        self._read += 1
        if info.nbytes > _MAX_JSON_BYTES or self._read > _MAX_JSON_TENSORS:
            raise self._damaged(name, "is more than any quantiser writes")
        try:
            content = json.loads(self._companion(info).read())
        except (ValueError, RecursionError) as error:
            raise self._damaged(name, f"is not JSON ({error})") from None
        if not isinstance(content, dict):
            raise self._damaged(name, "is not a JSON object")
        return content

    @staticmethod
    def _require_rows(info: TensorInfo) -> None:
        if info.stride is not None:
            raise CheckpointError(f"{info.file}: quantised, and not stored row by row: use `lading convert` first")

    def _require_counts(self, scheme: str, expected: Mapping[str, tuple[TensorInfo, int]]) -> None:
        for name, (info, count) in expected.items():
            if prod(info.shape) != count:
                raise self._damaged(name, f"holds {prod(info.shape)} elements, {scheme} needs {count}")

    def _damaged(self, name: str, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._stored[name].file}: tensor {name!r} {what}: the file is damaged: fetch it again"
        )


_MARKS: dict[str, Callable[[_Sorter, str, str], None]] = {
    ".quant_state.bitsandbytes__nf4": _Sorter.bitsandbytes_4bit,
    ".quant_state.bitsandbytes__fp4": _Sorter.bitsandbytes_4bit,
    ".SCB": _Sorter.bitsandbytes_8bit,
    ".scale_weight": _Sorter.scaled,
    ".weight_scale": _Sorter.scaled,
    ".weight_scale_inv": _Sorter.scaled,
    "scaled_fp8": _Sorter.marker,
    "._data": _Sorter.quanto,
}
"""The end of a name -> what it says. `scale_weight` and `scaled_fp8` are what ComfyUI's files had before `weight_scale`
and `comfy_quant`; `weight_scale` alone is how Black Forest Labs and NVIDIA's ModelOpt write."""


def _described_by_torchao(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return what torchao says of each weight in safetensors' metadata."""
    found = {}
    for name, text in metadata.items():
        if '"_tensor_data_names"' not in text or len(text) > _MAX_JSON_BYTES:
            continue
        try:
            description = json.loads(text)
        except (ValueError, RecursionError):
            continue
        parts = description.get("_tensor_data_names") if isinstance(description, dict) else None
        if isinstance(parts, list) and all(isinstance(part, str) for part in parts):
            found[name] = description
    return found


def _described_by_comfyui(metadata: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    """Return what ComfyUI says of each layer in safetensors' metadata."""
    try:
        content = json.loads(metadata.get("_quantization_metadata", "{}"))
    except (ValueError, RecursionError):
        return {}
    layers = content.get("layers") if isinstance(content, dict) else None
    found = layers.items() if isinstance(layers, dict) else ()
    return {name: described for name, described in found if isinstance(described, dict)}


def _in_two_axes(info: TensorInfo) -> TensorInfo:
    """Packed codes in the number of axes that the weights of linear layers have."""
    return info if len(info.shape) == 2 else replace(info, shape=(info.nbytes, 1))


def _torchao_dtype(description: Mapping[str, Any]) -> str:
    """The dtype of the weight that was quantised."""
    data = description.get("_data")
    dtype = data.get("dtype") if isinstance(data, dict) else None
    name = dtype.get("_data") if isinstance(dtype, dict) else None
    return name if isinstance(name, str) and name in ("float32", "float16") else "bfloat16"


def _has_all_its_bits(info: TensorInfo) -> bool:
    """Whether a tensor may be what it seems, so that a name beside it proves nothing."""
    return not info.dtype.startswith(("float4", "float6", "float8", "int8", "uint8"))


def _padded(count: int, tile: int) -> int:
    return -(-count // tile) * tile
