"""Write `docs/reference.md` from the code: every setting, task, preset, optimizer, schedule and source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from burnish.api import info
from burnish.config import Config, TaskSettings, config_class, explained
from burnish.task import registry

TARGET = Path(__file__).resolve().parent.parent / "docs" / "reference.md"


def reference() -> str:
    """Return the page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Settings"
    yield ""
    yield "Written by `make docs` from the code. On the command line `--optim.lr 3e-4`, in a recipe `optim: {lr: 3e-4}`, in"
    yield 'Python `burnish.train(..., optim={"lr": 3e-4})`. A group given a plain value sets its first field.'
    for group, field in explained(Config).model_fields.items():
        settings: Any = field.annotation
        yield from _group(group, settings, settings.model_fields)
    for name, task in registry().items():
        own = {key: value for key, value in task.Settings.model_fields.items() if key not in TaskSettings.model_fields}
        explained(config_class(task.Settings))
        if own:
            yield from _group(f"task, for {name}", task.Settings, own, prefix="task")
    found = info()
    for title in ("tasks", "optimizers", "schedules", "sources"):
        yield from ["", f"## {title}", ""]
        yield from (f"- `{name}`: {text}" for name, text in found[title].items())
    yield from ["", "## presets", "", "| preset | parameters | source |", "| --- | --- | --- |"]
    yield from (
        f"| `{name}` | {preset['parameters']:,} | {preset['source']} |" for name, preset in found["presets"].items()
    )


def _group(title: str, settings: Any, shown: dict[str, Any], prefix: str | None = None) -> Iterator[str]:
    yield from [
        "",
        f"## {title}",
        "",
        " ".join((settings.__doc__ or "").split()),
        "",
        "| setting | default | what it does |",
    ]
    yield "| --- | --- | --- |"
    for name, field in shown.items():
        default = "" if field.default in (None, (), "") else f"`{field.default}`"
        option = f"--{prefix or title}.{name.replace('_', '-')}"
        yield f"| `{option}` | {default} | {' '.join((field.description or '').split())} |"


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
    print(f"wrote {TARGET.name}")
