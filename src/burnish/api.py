"""The verbs as functions: `train`, `load`, `evaluate`. Here task, engine, evaluation and report are wired together.

Importing this module does not import torch: a finished run is recognised, and a wrong setting refused, before that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from burnish.config import Config, config_class, differences, merge, normalise, parse, read_recipe
from burnish.env import load_torch, machine, versions
from burnish.errors import UserError
from burnish.models.dial import dialled
from burnish.run import RunFolder, folder_name
from burnish.task import Task, find_task, registry
from burnish.terminal import Terminal


def resolve(target: str | None, overrides: Mapping[str, Any]) -> tuple[Config, type[Task], str]:
    """Return the settings of a task name or recipe with overrides, the task, and the name of the default run folder.

    Raises:
        UserError: an unknown task or recipe, or wrong settings, all of them in one message.
    """
    layers, stem = [], None
    if target is not None and target.lower().endswith((".yaml", ".yml")):
        layers.append(normalise(read_recipe(Path(target))))
        stem = Path(target).stem
    elif target is not None:
        find_task(target)
        layers.append({"task": {"name": target}})
    layers.append(normalise(overrides))
    values = merge(*layers)
    group = values.get("task")
    name = group.get("name") if isinstance(group, Mapping) else None
    if not isinstance(name, str):
        given = "none given" if name is None else f"{name!r} is no name of a task"
        raise UserError(f"{f'{target}: ' if stem else ''}task: {given}. Known: {', '.join(registry())}.")
    task = find_task(name)
    config = parse(values, config_class(task.Settings), (stem and str(target)) or "settings")
    if (config.model.path is None) == (config.model.preset is None):
        given = "both given" if config.model.path else "neither given"
        raise UserError(
            f"model: give either --model (a Hub id or folder, pretrained) or --preset (from scratch); {given}."
        )
    config = dialled(config)
    if stem is None:
        first = config.data.train[0] if config.data.train else "run"
        stem = Path(first).name.split(".")[0] if os.path.exists(first) else first
    return config, task, folder_name(stem)


def choose_folder(config: Config, task: type[Task], name: str) -> RunFolder:
    """Return the run folder: the given one, or the first of `runs/NAME`, `runs/NAME-2`, ... that is free or of this recipe.

    Raises:
        UserError: the given folder holds a run of another recipe, or something else.
    """
    fresh = config.run.resume == "never"
    if config.run.dir is not None:
        folder = RunFolder.wanted(config.run.dir)
        if os.path.isdir(folder.path) and not folder.is_run and not folder.lock.exists() and os.listdir(folder.path):
            raise UserError(f"run.dir: {folder} holds other files and no burnish run; give a new or empty folder.")
        if folder.is_run and not fresh and (changed := differences(stored_config(folder, task), config)):
            shown = "; ".join(changed[:5]) + ("; ..." if len(changed) > 5 else "")
            raise UserError(
                f"run.dir: {folder} holds a run of another recipe: {shown}. Give another --run.dir, or --run.resume never "
                "to keep that run under another name and start again."
            )
        return folder
    number = 1
    while True:
        folder = RunFolder(Path("runs") / (name if number == 1 else f"{name}-{number}"))
        if (
            fresh
            or not folder.path.exists()
            or not folder.is_run
            or not differences(stored_config(folder, task), config)
        ):
            return folder
        number += 1


def stored_config(folder: RunFolder, task: type[Task]) -> Config:
    """Return the settings a run was started with; of another task, settings that differ in everything."""
    try:
        values = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{folder.config}: cannot be read ({' '.join(str(error).split())[:200]}).") from error
    if not isinstance(values, dict):
        raise UserError(f"{folder.config}: holds no settings.")
    name = (values.get("task") or {}).get("name", "") if isinstance(values.get("task"), dict) else ""
    own = find_task(name) if name in registry() else task
    return parse(values, config_class(own.Settings), str(folder.config))


@dataclass(frozen=True)
class Run:
    """A run folder as an object: its figures, and its model put to use.

    Args:
        folder: the run folder.
    """

    folder: RunFolder

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @property
    def metrics(self) -> dict[str, Any]:
        """The final figures, as in RUN/metrics.json."""
        return self.folder.read_json(self.folder.metrics)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines of RUN/metrics.jsonl."""
        return self.folder.log_lines()

    def predict(self, asked: Any, *, seed: int = 0, **generate: Any) -> Any:
        """Return the answer to an input, or the answers to several.

        Args:
            asked: a text, or an image (a path, uint8 pixels [height, width, 3], or one of PIL's), or the columns the task
                needs, such as `{"question": ..., "context": ...}`; or a list of several.
            seed: of sampling.
            generate: settings of the `generate` group, such as `max_tokens=20`.
        """
        from burnish.inference import open_model

        alone = not isinstance(asked, list | tuple)
        answers = open_model(str(self.path)).predict([asked] if alone else list(asked), generate, seed)  # type: ignore
        return answers[0] if alone else answers

    def evaluate(self, data: str | Sequence[str] | None = None) -> dict[str, Any]:
        """Return metrics and intervals on other rows, or on the run's own test or validation rows."""
        return evaluate(str(self.path), data=data, terminal=Terminal(quiet=True))


def load(path: str | Path) -> Run:
    """Return the run in a folder.

    Raises:
        UserError: there is none.
    """
    folder = RunFolder(path)
    if not folder.is_run:
        raise UserError(f"{path}: holds no burnish run (no config.yaml).")
    return Run(folder)


def train(
    task: str | None = None, /, *, dry_run: bool = False, terminal: Terminal | None = None, **settings: Any
) -> Run | dict[str, Any]:
    """Train, continue or recognise a run, and return it; with `dry_run`, return the plan and write nothing.

    Args:
        task: a task name or the path of a recipe.
        settings: groups of settings, over the recipe's: `model="gpt2"`, `data={"train": "x.csv"}`, `task={"kind": "multi"}`.

    Raises:
        UserError: something in the settings or the data can be mended.
        GuardError: a guard stopped the run.
        Stopped: a signal did; the same call continues.
    """
    config, task_class, name = resolve(task, settings)
    terminal = terminal or Terminal()
    folder = choose_folder(config, task_class, name)
    if dry_run:
        from burnish.session import Session

        session = Session(config, task_class, folder, terminal)
        session.prepare()
        session.show_plan()
        return session.plan.to_json()
    if folder.is_finished and config.run.resume == "auto":
        terminal.say(
            f"{folder}: this run is finished; nothing to do. See {folder.report}, or start another with --run.dir."
        )
        return Run(folder)
    if config.run.resume == "never" and folder.is_run:
        from burnish.session import Session

        with folder.locked():  # wrong settings are refused before the earlier run loses its name
            Session(
                config, task_class, RunFolder(folder.path.with_name(f".tmp-{os.getpid()}")), Terminal(quiet=True)
            ).prepare()
        terminal.say(f"kept the earlier run as {folder.set_aside()}")
    with folder.locked():
        try:
            _train(config, task_class, folder, terminal)
        finally:
            terminal.close()
            _remove_if_nothing_began(folder)
    return Run(folder)


def _remove_if_nothing_began(folder: RunFolder) -> None:
    if not folder.is_run and set(os.listdir(folder.path)) <= {folder.lock.name}:
        folder.lock.unlink()
        folder.path.rmdir()


def _train(config: Config, task_class: type[Task], folder: RunFolder, terminal: Terminal) -> None:
    load_torch()
    from burnish.engine.guard import StopSignal, resources, torch_settings_restored
    from burnish.parallel.launch import ranks
    from burnish.session import Session

    signal = StopSignal()
    with signal.installed(), resources(folder.path), torch_settings_restored():
        session = Session(config, task_class, folder, terminal)
        session.prepare()
        session.build()
        session.begin()
        session.show_plan()
        parallel = (config.model_dump_json(), folder.path, session.plan.device, session.plan.threads)
        with ranks(config.parallel.ranks, "burnish.worker", *parallel) as group:
            session.train(signal, group)
        session.finish()


def evaluate(
    target: str,
    *,
    data: str | Sequence[str] | Mapping[str, Any] | None = None,
    task: str | Mapping[str, Any] | None = None,
    terminal: Terminal | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Return metrics and their intervals of a run or a model on rows.

    Args:
        target: a run folder, a model folder or a Hub id.
        data: files, folders or Hub ids, or a group of settings such as `{"test": "more.csv", "text": "review"}`. Default:
            the run's own test rows, or its validation rows.
        task: its name, needed where the model's architecture does not say it, or settings of its group over the run's.
        settings: groups of settings over the run's.

    Raises:
        UserError: the target or the data cannot be used.
    """
    load_torch()
    from burnish.inference import open_model

    rows: Any = data
    if isinstance(data, Mapping):
        group = dict(data)
        rows = group.pop("test", None)
        settings["data"] = group
    return open_model(target, task=task, settings=settings).evaluate(rows, terminal or Terminal())


def predict(
    target: str,
    inputs: Sequence[str],
    *,
    task: str | Mapping[str, Any] | None = None,
    column: str | None = None,
    seed: int = 0,
    generate: Mapping[str, Any] | None = None,
    pictures: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the answer to each input, in order.

    Args:
        target: a run folder, a model folder or a Hub id.
        inputs: texts, JSON objects where a task needs several columns, or files (txt: a text a line; csv, jsonl, parquet);
            of images files or folders of them.
        column: of the text in files. Default: as in the run's own data.
        task: its name, needed where neither a run nor the architecture says it, or settings of its group over the run's.
        seed: of sampling.
        generate: settings of the `generate` group.
        pictures: folder into which each image is written with its answer drawn on it.

    Raises:
        UserError: the target or an input cannot be used.
    """
    load_torch()
    from burnish.data.rows import asked_of
    from burnish.inference import open_model

    opened = open_model(target, task=task)
    columns = opened.asks | ({next(iter(opened.asks)): column} if column else {})
    asked = [values for given in inputs for values in asked_of(given, columns, opened.task.reads)]
    if not asked:
        raise UserError("Nothing to answer: give texts or files, or lines on standard input.")
    if pictures is not None:
        opened.refuse_overwriting(asked, Path(pictures))
    for start in range(0, len(asked), 16):
        some = asked[start : start + 16]
        for number, answer in enumerate(opened.predict(some, generate or {}, seed + start)):
            if pictures is not None:
                answer["picture"] = str(opened.draw(some[number], answer, Path(pictures)))
            yield answer


def info() -> dict[str, Any]:
    """Return what there is: tasks, presets, optimizers, schedules, sources, metrics, versions and the machine."""
    from burnish.data.rows import sources
    from burnish.models.scratch import presets
    from burnish.optim.optimizers import OPTIMIZERS
    from burnish.optim.schedules import SCHEDULES

    return {
        "tasks": {name: first_line(task) for name, task in registry().items()},
        "presets": {name: {"parameters": p.parameters, "source": p.source} for name, p in presets().items()},
        "optimizers": {name: first_line(function) for name, function in sorted(OPTIMIZERS.items())},
        "schedules": {name: first_line(function) for name, function in sorted(SCHEDULES.items())},
        "sources": {
            **{name: ", ".join(source.endings) for name, source in sources().items()},
            "hub": "ORG/NAME[:SUBSET][@SPLIT]",
        },
        "versions": versions(),
        "machine": machine(),
    }


def first_line(documented: Any) -> str:
    """Return the first sentence of a docstring."""
    text = " ".join((documented.__doc__ or "").strip().split("\n\n")[0].split())
    return text.partition(". ")[0].rstrip(".") + "."
