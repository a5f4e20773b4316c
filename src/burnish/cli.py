"""The command line: reads arguments, calls `burnish.api`, prints. No logic of its own."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter, UnusedCliTokensError
from pydantic import ValidationError

from burnish.config import Config, TaskSettings, config_class, explain, explained, fields, read_recipe
from burnish.errors import BurnishError
from burnish.run import RunFolder, home_path, refuse_missing

_HELP = """Train and fine-tune transformers: exact, fast, whole.

    burnish train text-classification --model bert-base-uncased --data.train reviews.csv
    burnish train text-generation --preset gpt2-nano --data.train book.txt --train.length "500 steps"
    burnish train recipes/gpt2-shakespeare.yaml --optim.lr 6e-4
    burnish evaluate runs/reviews --data.test more.csv
    burnish predict runs/reviews "the plot is thin but the cast shines"
    burnish assist home.yaml command.wav

The same `train` command continues a stopped run. Exit codes: 0 done, 1 a bug, 2 you can mend it, 3 a guard stopped the
run, 75 stopped by a signal and resumable.
"""

_TRAIN_HELP = """Train a task from scratch or from a pretrained model; continue a stopped run.

Give a task (`burnish info` lists them) or a recipe, a YAML file of the settings below, such as

    task: text-classification
    model: bert-base-uncased
    data: reviews.csv
    optim: {lr: 3e-5}

Options stand over the recipe. A group given a plain value sets its first field: --model X is --model.path X, --data X is
--data.train X; --preset X is --model.preset X. Every setting has a default; --dry-run shows them and what is derived.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("TOKENIZERS_PARALLELISM", "true"),
    ):
        os.environ.setdefault(name, value)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # as stderr has them: bytes of a file's name that are no UTF-8
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        task_settings = _task_settings(words)
        cls = config_class(task_settings)
        app = _app(explained(cls) if {"--help", "-h"} & set(words) else cls)
        app(_expanded(words, cls), exit_on_error=False, print_error=False)
        code = 0
    except CycloptsError as error:
        code = _failed(_sentence(error, words), 2)
    except ValidationError as error:
        code = _failed(explain(error, config_class(_task_settings(words)), "settings"), 2)
    except BurnishError as error:
        code = _failed(str(error), error.exit_code)
    except KeyboardInterrupt:
        code = _failed("interrupted.", 75)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def _failed(text: str, code: int) -> int:
    from burnish.terminal import fail

    fail(text)
    return code


def _sentence(error: CycloptsError, words: Sequence[str]) -> str:
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ValidationError):
        return explain(cause, config_class(_task_settings(words)), "settings")
    if isinstance(error, UnusedCliTokensError):
        unused = " ".join(map(repr, error.unused_tokens or ()))
        verb = next((word for word in words if not word.startswith("-")), "")
        return (
            f"`burnish {verb}` takes no more words; these are too many: {unused}. Leave them out, or put the option they "
            f"belong to before them (`burnish {verb} --help` lists all)."
        )
    return " ".join(str(error).split())


def _task_settings(words: Sequence[str]) -> type[TaskSettings]:
    """Return the settings class of the task that a command names, so that its own options are known."""
    from burnish.task import registry

    if len(words) < 2 or words[0] not in ("train", "evaluate", "predict") or words[1].startswith("-"):
        return TaskSettings
    name: Any = words[1]
    if words[0] != "train":  # a run, unless the task of a model is given
        given = [after for word, after in pairwise(words) if word == "--task"]
        refuse_missing(name)
        name = given[0] if given else str(RunFolder(home_path(name)).config)
    if name.lower().endswith((".yaml", ".yml")):
        if not os.path.isfile(name):
            return TaskSettings  # who opens it says that it is missing
        group = read_recipe(Path(name)).get("task")
        name = group.get("name") if isinstance(group, dict) else group
    found = registry().get(name) if isinstance(name, str) else None
    return found.Settings if found else TaskSettings


def _expanded(words: Sequence[str], cls: type[Config]) -> list[str]:
    """Write `--model X` as `--model.path X`, and `--data.stratify true` or `--train.length "-5 steps"` as one word.

    A group given a plain value sets its first field; a setting that is true or false may stand alone, or before its value.
    """
    short = {"--preset": "--model.preset"}
    switches = {f"--{setting.replace('_', '-')}" for setting, info in fields(cls) if info.annotation is bool}
    for setting, _ in fields(cls):
        group, _, name = setting.partition(".")
        short.setdefault(f"--{group}", f"--{group}.{name}")
    if words[:1] == ["train"]:
        del short["--task"]  # it is the command's first word
    result: list[str] = []
    for index, word in enumerate(words):
        if word == "--":
            return result + list(words[index:])
        last = result[-1].replace("_", "-") if result else ""
        said = last in switches and word.lower() in ("true", "false")
        if said or (last.startswith("--") and word.startswith("-") and word[1:2].isdigit()):
            result[-1] += f"={word.lower() if said else word}"
            continue
        option, equals, value = word.partition("=")
        result.append(short.get(option, option) + equals + value)
    return result


def _settings_parameters(cls: type[Config]) -> list[inspect.Parameter]:
    """Return one keyword parameter per group of settings, with its own heading in the help."""
    parameters = []
    for position, (name, info) in enumerate(cls.model_fields.items()):
        group: Any = info.annotation
        heading = Group(f"{name}: {(group.__doc__ or '').strip().splitlines()[0]}", sort_key=10 + position)
        option = Parameter(name=name, group=heading, negative="", show_default=_shown)
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[group | None, option], default=None
            )
        )
    return parameters


def _shown(default: Any) -> Any:
    return None if default in (None, (), "") else default


def _app(cls: type[Config]) -> App:
    from burnish import __version__

    app = App(name="burnish", help=_HELP, version=__version__, help_format="plaintext")
    groups = _settings_parameters(cls)
    app.command(_with(_train, groups), name="train", help=_TRAIN_HELP)
    some = [parameter for parameter in groups if parameter.name in ("task", "data", "run", "train")]
    app.command(_with(_evaluate, some), name="evaluate")
    asked = [parameter for parameter in groups if parameter.name in ("task", "generate")]
    app.command(_with(_predict, asked), name="predict")
    app.command("burnish.assist.command:assist", name="assist")
    app.command(_info, name="info")
    return app


def _with(function: Callable[..., None], groups: list[inspect.Parameter]) -> Callable[..., None]:
    """Return the command with the groups of settings among its parameters; it gets those given as one mapping."""
    own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "settings"]

    def command(*args: Any, **kwargs: Any) -> None:
        given = {
            p.name: kwargs.pop(p.name).model_dump(exclude_unset=True) for p in groups if kwargs.get(p.name) is not None
        }
        for parameter in groups:
            kwargs.pop(parameter.name, None)
        function(*args, settings=given, **kwargs)

    command.__doc__ = function.__doc__
    command.__signature__ = inspect.Signature([*own, *groups])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*own, *groups]}
    return command


_Flag = Annotated[bool, Parameter(negative="")]


def _train(target: str, /, *, dry_run: _Flag = False, json: _Flag = False, settings: dict[str, Any]) -> None:
    """
    Parameters
    ----------
    target:
        A task or a recipe (.yaml).
    dry_run:
        Show the plan: settings, what is derived from what, size, schedule, memory. Writes no run.
    json:
        Print the result as JSON on stdout; everything else goes to stderr.
    """
    from burnish.api import train
    from burnish.terminal import Terminal

    result = train(target, dry_run=dry_run, terminal=Terminal(to_stderr=json), **settings)
    if json:
        _print_json(result if isinstance(result, dict) else {"run": str(result.path), **result.metrics})


def _evaluate(target: str, /, *, json: _Flag = False, settings: dict[str, Any]) -> None:
    """Measure a run or a model on rows: the metrics of its task, with 95 % bootstrap intervals.

    Parameters
    ----------
    target:
        A run folder, a model folder or a Hub id; with --task NAME where neither a run nor its architecture says the task.
    json:
        Print the result as JSON on stdout; everything else goes to stderr.
    """
    from burnish.api import evaluate
    from burnish.terminal import Terminal

    result = evaluate(target, terminal=Terminal(to_stderr=json), **settings)
    if json:
        _print_json(result)


def _predict(
    target: str,
    /,
    *inputs: str,
    text: str | None = None,
    seed: int = 0,
    pictures: str | None = None,
    json: _Flag = False,
    settings: dict[str, Any],
) -> None:
    """Answer texts, files of texts, or the lines of standard input with a trained run or model.

    Parameters
    ----------
    target:
        A run folder, a model folder or a Hub id; with --task NAME where neither a run nor its architecture says the task.
    inputs:
        Texts, JSON objects of columns, or files (txt: a text a line; csv, jsonl, parquet). None: lines from standard input.
    text:
        The column that holds the text in csv, jsonl and parquet files. Default: as in the run's own data.
    seed:
        Seed of sampling.
    pictures:
        A folder into which each image is written with what was found drawn on it (object-detection).
    json:
        Print one JSON object a line.
    """
    from burnish.api import predict
    from burnish.terminal import show_answer, typed_lines

    texts = inputs or list(typed_lines("one text a line; end with Ctrl-D", "Name texts or files after the model."))
    for answer in predict(target, texts, column=text, seed=seed, pictures=pictures, **settings):
        if json:
            print(_json(answer), flush=True)
        else:
            show_answer(answer)


def _info(*, json: _Flag = False) -> None:
    """List tasks, presets, optimizers, schedules, sources, versions and the machine.

    Parameters
    ----------
    json:
        Print it as JSON.
    """
    from burnish.api import info
    from burnish.terminal import show_info

    found = info()
    if json:
        _print_json(found)
    else:
        show_info(found)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False), flush=True)
