"""Sizes and dtypes in the words people use, without torch.

Sizes are strings ("8GB" = 8e9, "8GiB" = 8 * 2**30) or integers in bytes. Dtypes go by torch's names.
"""

from __future__ import annotations

import re
from math import prod

from lading.errors import LadingError

DTYPE_BITS: dict[str, int] = {
    "bool": 8,
    "uint8": 8,
    "int8": 8,
    "uint16": 16,
    "int16": 16,
    "uint32": 32,
    "int32": 32,
    "uint64": 64,
    "int64": 64,
    "float4_e2m1fn_x2": 4,
    "float6_e2m3fn": 6,
    "float6_e3m2fn": 6,
    "float8_e4m3fn": 8,
    "float8_e4m3fnuz": 8,
    "float8_e5m2": 8,
    "float8_e5m2fnuz": 8,
    "float8_e8m0fnu": 8,
    "float16": 16,
    "bfloat16": 16,
    "float32": 32,
    "float64": 64,
    "complex32": 32,
    "complex64": 64,
    "complex128": 128,
}
"""Bits per element, by torch dtype name. A float4 counts as safetensors counts it, torch packs two in an element."""

DTYPE_ALIASES: dict[str, str] = {
    "half": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "float": "float32",
    "fp32": "float32",
    "double": "float64",
    "fp64": "float64",
    "fp8": "float8_e4m3fn",
    "long": "int64",
    "int": "int32",
    "short": "int16",
}

_SIZE = r"(?i)\s*(\d+(?:\.\d+)?)\s*([kmgtp]i?)?b?\s*"
_PREFIXES = ("k", "m", "g", "t", "p")


def parse_size(size: int | str) -> int:
    """Return a size in bytes.

    Raises:
        LadingError: the text is no size, or the number is negative.

    >>> parse_size("8GB"), parse_size("8GiB"), parse_size(4096)
    (8000000000, 8589934592, 4096)
    """
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    match = re.fullmatch(_SIZE, size) if isinstance(size, str) else None
    if match is None:
        raise LadingError(f'{size!r} is not a size: write bytes as a whole number, or a text like "8GB" or "7.5GiB"')
    number, prefix = match.groups()
    if prefix is None:
        factor = 1
    else:
        factor = (1024 if prefix.lower().endswith("i") else 1000) ** (_PREFIXES.index(prefix[0].lower()) + 1)
    return round(float(number) * factor) if "." in number else int(number) * factor


def parse_rate(rate: float | str) -> float:
    """Return a rate in bytes per second.

    Raises:
        LadingError: the text is no rate, or it is not above 0.

    >>> parse_rate("7GB/s"), parse_rate("800 MB/s")
    (7000000000.0, 800000000.0)
    """
    text = re.sub(r"(?i)\s*/\s*s(ec)?\s*$", "", rate) if isinstance(rate, str) else rate
    try:
        found = float(parse_size(text)) if isinstance(text, str) else float(text)
    except (LadingError, TypeError, ValueError):
        found = 0.0
    if found <= 0:
        raise LadingError(f'{rate!r} is not a rate: write such as "7GB/s", or bytes per second as a number')
    return found


def parse_compute(rate: float | str) -> float:
    """Return a rate of computing in floating-point operations per second.

    Raises:
        LadingError: the text is none, or it is not above 0.

    >>> parse_compute("100TFLOPS"), parse_compute("2.5 PFLOP/s")
    (100000000000000.0, 2500000000000000.0)
    """
    match = (
        re.fullmatch(r"(?i)\s*(\d+(?:\.\d+)?)\s*([kmgtp])?\s*flops?(?:/s)?\s*", rate) if isinstance(rate, str) else None
    )
    if match is not None:
        found = float(match[1]) * 1000.0 ** (_PREFIXES.index(match[2].lower()) + 1 if match[2] else 0)
    else:
        found = float(rate) if isinstance(rate, int | float) else 0.0
    if found <= 0:
        raise LadingError(f'{rate!r} is not a rate of computing: write such as "100TFLOPS", or FLOPs per second')
    return found


def format_count(number: float, billion: str = "B") -> str:
    """Write a number with three digits and a short word for thousands.

    >>> format_count(20_430_401_088), format_count(860_000_000), format_count(94.5e9, "G")
    ('20.4 B', '860 M', '94.5 G')
    """
    for factor, word in ((1e12, "T"), (1e9, billion), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * factor:
            value = number / factor
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {word}"
    return f"{number:.0f}"


def format_seconds(seconds: float) -> str:
    """Write a duration as people say it.

    >>> format_seconds(0.0123), format_seconds(4.56), format_seconds(75), format_seconds(6200), format_seconds(2e-5)
    ('12 ms', '4.6 s', '1 min 15 s', '1 h 43 min', '20 µs')
    """
    if seconds < 0.0000995:
        return f"{1e6 * seconds:.0f} µs"
    if seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.0095 else f"{1000 * seconds:.1f} ms"
    if seconds < 59.5:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def format_size(nbytes: int) -> str:
    """Write a number of bytes with three digits and a decimal unit.

    >>> format_size(999), format_size(1_719_000_000), format_size(12_340)
    ('999 B', '1.72 GB', '12.3 kB')
    """
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    if unit == "B":
        return f"{nbytes} B"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def dtype_name(name: str) -> str:
    """Return torch's own name of a dtype given under any of its usual names.

    Raises:
        LadingError: no dtype has that name.

    >>> dtype_name("bf16"), dtype_name("torch.float16")
    ('bfloat16', 'float16')
    """
    plain = name.removeprefix("torch.").lower()
    plain = DTYPE_ALIASES.get(plain, plain)
    if plain not in DTYPE_BITS:
        raise LadingError(f"there is no dtype {name!r}: use one of {', '.join(DTYPE_BITS)}")
    return plain


def tensor_nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes that a dense tensor takes; a size that is no whole number of bytes is rounded up.

    >>> tensor_nbytes("float16", (2, 3))
    12
    """
    return (DTYPE_BITS[dtype] * prod(shape) + 7) // 8
