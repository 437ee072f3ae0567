"""What is imported on first use (PEP 562): names, and modules that others import in advance."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lading.collection import collection_put_off


def lazy_names(
    package: str, homes: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__`.

    Args:
        homes: module -> the names that the package offers from it.
    """
    home_of = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with collection_put_off():
            return getattr(importlib.import_module(home_of[name]), name)

    return get, lambda: sorted(home_of)


@contextmanager
def import_put_off(name: str) -> Iterator[None]:
    """Have `import package.module` cost nothing inside, where the package brings its modules when they are used.

    Whoever asks the module for anything meanwhile, in any thread, gets it from the true one. After it nothing is left
    of this: `package.module` imports the module when it is first read.
    """
    home, _, child = name.rpartition(".")
    installed = name not in sys.modules and importlib.util.find_spec(home) is not None
    package = importlib.import_module(home) if installed else None
    spec = importlib.util.find_spec(name) if hasattr(package, "__getattr__") else None
    if spec is None:
        yield
        return
    stand_in = importlib.util.module_from_spec(spec)

    def remove() -> None:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
            delattr(package, child)

    def get(attribute: str) -> Any:
        remove()
        return getattr(importlib.import_module(name), attribute)

    vars(stand_in).pop("__path__", None)  # whose import needs it needs the true one
    vars(stand_in)["__getattr__"] = get
    sys.modules[name] = stand_in
    setattr(package, child, stand_in)
    try:
        yield
    finally:
        remove()
