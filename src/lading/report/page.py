"""A run as one HTML page that needs nothing beside it: charts, tables, pictures, and no network.

Every text goes through a template that escapes it. The page's own security policy allows the scripts that it holds, by
their hashes, and nothing else: no other script, no request.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from lading.errors import LadingError
from lading.report.charts import figures, predicted_step
from lading.report.intervals import busy_seconds
from lading.report.journey import journey
from lading.report.run import PEAK, Comparison, Run
from lading.sizes import format_seconds, format_size
from lading.writing import require_folder, whole_file

_FOLDER = Path(__file__).with_name("page")


def check_report(path: Path) -> None:
    """Refuse, before any work is done, a report that could not be written in the end.

    Raises:
        LadingError: there is no such folder, or what draws the charts is not installed.
    """
    require_folder(path, "report.html")
    missing = [name for name in ("plotly", "jinja2") if importlib.util.find_spec(name) is None]
    if missing:
        raise LadingError(
            f"{path}: a report needs {' and '.join(missing)}, which is not installed: pip install 'lading[report]'"
        )


def write_page(run: Run, path: Path) -> None:
    """Write a run's report; the file appears whole or not at all.

    Raises:
        LadingError: there is no such folder, or what draws the charts is not installed.
    """
    check_report(path)
    with whole_file(path) as part:
        part.write_text(page_of(run), encoding="utf-8")


def page_of(run: Run) -> str:
    """Return a run's report."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    templates = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined)
    templates.trim_blocks = templates.lstrip_blocks = True
    templates.filters |= {"size": _size, "seconds": format_seconds, "value": _value}
    scripts = [get_plotlyjs(), (_FOLDER / "page.js").read_text()]
    template = templates.get_template("page.html")
    return template.render(
        run=run,
        journey=journey(run.calls),
        links=_links(run),
        predicted_step=predicted_step(run),
        planned_peak=max((one.predicted for one in run.comparisons if one.quantity == PEAK), default=0),
        figures=Markup(_json(figures(run))),
        style=Markup((_FOLDER / "page.css").read_text()),
        scripts=[Markup(script) for script in scripts],
        hashes=[_hash(script) for script in scripts],
        picture=None if run.picture is None else base64.b64encode(run.picture.png).decode(),
    )


def _size(nbytes: float) -> str:
    return format_size(round(nbytes))


def _value(comparison: Comparison, value: float | None) -> str:
    if value is None:
        return "not measured"
    return format_seconds(value) if comparison.unit == "s" else format_size(round(value))


def _links(run: Run) -> list[tuple[str, int, float]]:
    """What the disk and the bus moved: what, bytes, and seconds in which they were busy."""
    lanes = (("disk reads", run.lane("read")), ("host-to-device copies", run.lane("copy")))
    return [(name, sum(span.nbytes for span in spans), busy_seconds(spans)) for name, spans in lanes if spans]


def _json(content: Any) -> str:
    """JSON for a script element: nothing in it ends the element."""
    return json.dumps(content).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
