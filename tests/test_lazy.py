from __future__ import annotations

import subprocess
import sys

PUT_OFF = """
import sys
from lading.lazy import import_put_off
with import_put_off("numpy.testing"):
    import numpy.testing
    assert numpy.testing.__name__ == "numpy.testing"
assert "numpy.testing" not in sys.modules
numpy.testing.assert_equal(1, 1)
assert "numpy.testing" in sys.modules
"""
USED_MEANWHILE = """
from lading.lazy import import_put_off
with import_put_off("numpy.testing"):
    import numpy.testing
    from numpy.testing import assert_equal
    import numpy.testing.overrides
assert numpy.testing.assert_equal is assert_equal
assert numpy.testing.overrides.__name__ == "numpy.testing.overrides"
"""
NOT_THERE = """
import sys
from lading.lazy import import_put_off
with import_put_off("no_such_package.stats"), import_put_off("json.stats"):
    pass
assert "json.stats" not in sys.modules
"""


def run(program: str) -> None:
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_module_that_others_import_in_advance_comes_when_it_is_used() -> None:
    run(PUT_OFF)


def test_who_uses_it_meanwhile_gets_the_true_one() -> None:
    run(USED_MEANWHILE)


def test_a_module_that_is_not_there_is_nobodys_matter() -> None:
    run(NOT_THERE)
