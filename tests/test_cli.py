"""The command line: fast help without torch, and one clear sentence with exit code 2 for every wrong input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from forks import forks
from helpers import COMMAND, LM, burnish


def _imports(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"], capture_output=True, text=True
    )
    return set(done.stdout.split())


def test_importing_and_help_do_not_import_torch() -> None:
    assert not {"torch", "transformers", "numpy", "datasets"} & _imports("import burnish; burnish.train; burnish.load")
    code = "from burnish.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert not {"torch", "transformers", "datasets", "pyarrow"} & _imports(code)


@pytest.mark.parametrize(
    "verb", [[], ["train"], ["train", "text-generation"], ["evaluate"], ["predict"], ["assist"], ["info"]]
)
def test_every_verb_has_help(verb: list[str]) -> None:
    done = burnish(*verb, "--help", fresh=True)
    assert done.returncode == 0 and len(done.stdout) > 200 and done.stderr == ""


def test_info_lists_what_there_is() -> None:
    done = burnish("info", "--json")
    found = json.loads(done.stdout)
    assert {"text-generation", "text-classification"} <= set(found["tasks"])
    assert found["presets"]["gpt2"]["parameters"] == 124_439_808
    assert {"adamw", "adam", "sgd", "adafactor", "muon"} == set(found["optimizers"])
    assert {"linear", "exponential", "cosine", "polynomial", "inverse-sqrt", "wsd", "constant"} == set(
        found["schedules"]
    )
    assert {"text", "jsonl", "csv", "parquet", "hub"} <= set(found["sources"])
    assert found["versions"]["torch"] and found["machine"]["cores"] >= 1


def test_dry_run_writes_nothing_and_says_all(text_file: Path, tmp_path: Path) -> None:
    done = burnish(*LM, "--data.train", text_file, "--train.length", "2 epochs", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    for word in ("parameters", "gradients", "optimizer", "steps", "tokens", "warm-up", "█", "Kaplan"):
        assert word in done.stdout
    plan = json.loads(burnish(*LM, "--data.train", text_file, "--dry-run", "--json", cwd=tmp_path).stdout)
    assert plan["total_steps"] > 0 and plan["why"]["lr"]


def test_the_published_gpt2_is_planned_with_its_published_size(text_file: Path, tmp_path: Path) -> None:
    done = burnish("train", "text-generation", "--preset", "gpt2", "--data.train", text_file, "--dry-run", cwd=tmp_path)
    assert "124,439,808 of 124,439,808 parameters" in done.stdout, done.stderr


def test_a_whole_life(text_file: Path, tmp_path: Path) -> None:
    """Train, find it finished, evaluate, predict from text, file and standard input, with JSON for scripts."""
    command = [*LM, "--data.train", text_file, "--train.length", "6 steps"]
    first = burnish(*command, "--json", cwd=tmp_path, fresh=True)
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert result["run"] == "runs/river" and 0 < result["validation"]["bits_per_byte"] < 10
    stamp = (tmp_path / "runs" / "river" / "metrics.json").stat().st_mtime_ns
    again = burnish(*command, cwd=tmp_path)
    assert again.returncode == 0 and "finished" in again.stdout
    assert (tmp_path / "runs" / "river" / "metrics.json").stat().st_mtime_ns == stamp
    other = burnish(*command, "--optim.lr", "1e-4", "--json", cwd=tmp_path)
    assert json.loads(other.stdout)["run"] == "runs/river-2"
    figures = json.loads(burnish("evaluate", "runs/river", "--json", cwd=tmp_path).stdout)
    assert figures["metrics"]["loss"] == pytest.approx(result["validation"]["loss"], rel=1e-6)
    exact = ("--data.test", text_file, "--json", "--train.precision", "fp32")
    on_file = burnish("evaluate", "runs/river", *exact, cwd=tmp_path)
    assert json.loads(on_file.stdout)["examples"] > figures["examples"]
    as_model = burnish("evaluate", "runs/river/model", *exact, "--train.sequence", "32", cwd=tmp_path)
    assert json.loads(as_model.stdout)["metrics"]["loss"] == pytest.approx(
        json.loads(on_file.stdout)["metrics"]["loss"], rel=1e-5
    )
    (tmp_path / "lines.csv").write_text("line\nThe old king sees a stone.\n")
    column = burnish(
        "evaluate", "runs/river", "--data.test", "lines.csv", "--data.text", "line", "--json", cwd=tmp_path
    )
    assert json.loads(column.stdout)["examples"] == 1, column.stderr
    (tmp_path / "texts.jsonl").write_text('{"text": "The old"}\n{"text": "A stone"}\n')
    done = burnish(
        "predict", "runs/river", "--json", "The king", "texts.jsonl", "--generate.max-tokens", "3", cwd=tmp_path
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["text"] for answer in answers] == ["The king", "The old", "A stone"]
    piped = subprocess.run(
        [sys.executable, "-m", "burnish", "predict", "runs/river", "--json"],
        input="The king\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert json.loads(piped.stdout)["text"] == "The king"
    _refused(burnish("predict", "runs/river", "The king", "--seed", 10**30, cwd=tmp_path), "seed: 1000", "is too large")
    sound = forks().run(COMMAND, "predict", "runs/river", input="RIFF\0\0", cwd=tmp_path)
    _refused(sound, "Standard input is no text. Name texts or files")
    closed = forks().run(f"import sys; sys.stdin = None; {COMMAND}", "predict", "runs/river", cwd=tmp_path)
    _refused(closed, "Standard input is closed. Name texts or files")


def _refused(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.fixture
def here(tmp_path: Path, text_file: Path, reviews_file: Path) -> Path:
    """A folder with good and bad inputs."""
    (tmp_path / "book.txt").write_bytes(text_file.read_bytes())
    (tmp_path / "reviews.csv").write_bytes(reviews_file.read_bytes())
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text("\n \n\n")
    (tmp_path / "binary.txt").write_bytes(os.urandom(5000))
    (tmp_path / "one.csv").write_text("text,label\n" + "".join(f"good king {i},yes\n" for i in range(60)))
    (tmp_path / "gaps.csv").write_text("text,label\n" + "good king,yes\nbad king,\n" * 30)
    (tmp_path / "header.csv").write_text("text,text,label\na,b,c\n")
    (tmp_path / "other.csv").write_text("text,label\ngood king,positive\nbad king,purple\n")
    (tmp_path / "broken.jsonl").write_text('{"text": "a good king"}\n{"text": 3}\n{oops\n' * 20)
    (tmp_path / "bad.yaml").write_text("task: text-generation\noptim: {lrr: 1, name: [3]}\ntrane: {batch: 3}\n")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "twice.yaml").write_text("task: text-generation\ntrain: {batch: 1, batch: 2}\n")
    (tmp_path / "list-key.yaml").write_text("task: text-generation\n? [a, b]\n: 3\n")
    (tmp_path / "number.yaml").write_text("task: 5\n")
    turns = [{"role": "wizard", "content": "who goes there?"}, {"role": "assistant", "content": "the king"}]
    (tmp_path / "wizard.jsonl").write_text(json.dumps({"messages": turns}))
    (tmp_path / "half.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "\ud800"}]}))
    (tmp_path / "three.jsonl").write_text(json.dumps({"chosen": "a king", "rejected": 3}))
    (tmp_path / "alike.jsonl").write_text("".join(f'{{"anchor": "king {i}", "positive": "{i}"}}\n' for i in range(60)))
    (tmp_path / "code.yaml").write_text("task: !!python/object/apply:os.system ['touch canary']\n")
    return tmp_path


def hollow(model: Path, places: pytest.TempPathFactory) -> Path:
    """Return a copy of a model that lacks one of its backbone's tensors; beside it `mute`, which lacks its tokenizer."""
    folder = Path(shutil.copytree(model, places.mktemp("hollow") / "model"))
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.0.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder.parent / "mute").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model / name, folder.parent / "mute" / name)
    return folder


BAD_INPUTS: list[tuple[str, list[str]]] = [
    ("train text-generatoin --preset gpt2-nano --data.train book.txt", ["Unknown task", "Did you mean 'text-generation'"]),
    ("train text-generation --preset gtp2-nano --data.train book.txt", ["Unknown preset", "Did you mean 'gpt2-nano'"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --optim.name adamv", ["Unknown optimizer", "adamw"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --schedule.name cosin", ["Unknown schedule", "cosine"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --optim.lrr 1", ["--optim.lrr", "--optim.lr"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --optim.lr -1", ["optim.lr", "greater than 0"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --train.length 3parsecs", ["train.length", "parsecs", "epochs"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --train.sequence 999", ["train.sequence", "999", "256"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --train.sequence 2", ["train.sequence: 2 leaves no room", "at least 8"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --train.best acuracy", ["train.best", "bits_per_byte"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --model.tokenizer nowhere/", ["nowhere"]),
    ("train text-generation --data.train book.txt", ["--model", "--preset", "neither given"]),
    ("train text-generation --preset gpt2-nano --model reviews --data.train book.txt", ["both given"]),
    ("train text-generation --model ./nowhere --data.train book.txt", ["./nowhere", "no such folder"]),
    ("train text-generation --preset gpt2-nano", ["data.train", "no data given"]),
    ("train text-generation --preset gpt2-nano --data.train bok.txt", ["bok.txt does not exist", "Did you mean 'book.txt'"]),
    ("train text-generation --preset gpt2-nano --data.train empty.txt", ["empty.txt", "no rows"]),
    ("train text-generation --preset gpt2-nano --data.train blank.txt", ["blank.txt", "no rows"]),
    ("train text-generation --preset gpt2-nano --data.train binary.txt", ["binary.txt:", "more than 1 %"]),
    ("train text-generation --preset gpt2-nano --data.train reviews.csv --data.text txt", ["no column 'txt'", "text, label"]),
    ("train text-generation --preset gpt2-nano --data.train broken.jsonl", ["broken.jsonl:2", "not text", "more than 1 %"]),
    ("train text-generation --preset gpt2-nano --data.train broken.jsonl --data.on-bad-row stop", ["broken.jsonl:2", "not text"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --freeze.layers all", ["every parameter is frozen"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --freeze.layers 9", ["freeze.layers", "4 layers"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --run.device cuda", ["run.device", "cpu"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --checkpoint.keep 100000000", ["of disk", "--checkpoint.keep"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --run.resume runs/x", ["run.resume", "no checkpoint folder"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --data.holdout 120%", ["data.holdout", "120%"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --data.stratify", ["no labels to stratify by"]),
    ("train text-classification --model {bert} --data.train one.csv", ["at least two labels", "'yes'"]),
    ("train text-classification --model {bert} --data.train gaps.csv", ["gaps.csv:3", "'label' is empty"]),
    ("train text-classification --model {bert} --data.train header.csv", ["header.csv:1", "'text' stands twice"]),
    ("train text-classification --model {mute} --data.train reviews.csv", ["holds no tokenizer"]),
    ("train text-classification --model {bert} --data.train reviews.csv --data.label mood", ["no column 'mood'"]),
    ("train text-classification --model {bert} --data.train reviews.csv --data.test other.csv", ["other.csv:3", "'purple'", "training rows"]),
    ("train text-classification --model {bert} --data.train reviews.csv --train.sequence 65", ["65", "64"]),
    ("train text-classification --model {bert} --data.train reviews.csv --model.vocab-size 500", ["--preset only"]),
    ("train text-generation --model {bert} --data.train book.txt", ["sees later tokens", "decoder"]),
    ("train text-classification --model {hollow} --data.train reviews.csv", ["do not fit", "backbone are missing"]),
    ("train bad.yaml", ["3 settings are wrong", "optim.lrr", "Did you mean", "optim.name", "trane"]),
    ("train list.yaml", ["list.yaml", "mapping"]),
    ("train twice.yaml", ["twice.yaml", "stands twice", "line 2"]),
    ("train code.yaml", ["code.yaml", "not valid YAML"]),
    ("train nowhere.yaml", ["nowhere.yaml", "cannot be read"]),
    ("train list-key.yaml", ["list-key.yaml", "a key is a word", "line 2"]),
    ("train number.yaml", ["number.yaml", "5 is no name of a task", "text-generation"]),
    ("info --json a b", ["burnish info", "too many: 'a' 'b'", "--help"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --train.length 0", ["settings: train.length: '0' is no time", "more than 0"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --train.length 1" + "0" * 400, ["train.length", "longer than any run"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --schedule.warmup 200%", ["schedule.warmup", "'200%'", "100%"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --train.batch 99999999999999999999", ["train.batch", "1000000"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --run.threads 1000000", ["run.threads", "1024"]),
    ("train text-generation --preset gpt2-nano --data.holdout 0 --data.train wizard.jsonl --data.messages messages --task.template chatml", ["wizard.jsonl:1", "message 1", "'wizard'", "user, assistant"]),
    ("train text-generation --preset gpt2-nano --data.train half.jsonl --data.messages messages --task.template chatml", ["half.jsonl:1", "surrogate", "(--data.messages)"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --task.template binary.txt", ["task.template", "binary.txt", "UTF-8"]),
    ("train preference-tuning --preset gpt2-nano --data.train three.jsonl --data.holdout 0", ["three.jsonl:1", "rejected answer is int", "messages"]),
    ("train preference-tuning --preset gpt2-nano --data.train book.txt", ["book.txt:1", "no column 'chosen'", "(--data.chosen, --data.rejected)"]),
    ("train sentence-similarity --model {bert} --data.train alike.jsonl --train.batch 1", ["train.batch", "at least 2"]),
    ("train text-classification --model {bert} --data.train reviews.csv --train.sequence 2", ["train.sequence: 2 leaves no room", "at least 10"]),
    ("train text-classification --model {bert} --data.train reviews.csv --freeze.layers 1 --freeze.thaw 1min", ["freeze.thaw", "60 seconds", "steps"]),
    ("train text-classification --model {bert} --data.train reviews.csv --freeze.layers 1 --freeze.thaw 0", ["freeze.thaw: '0'", "more than 0"]),
    ("train text-classification --model {bert} --data.train reviews.csv --adapter.rank 8", ["adapter.rank", "--adapter.kind lora"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --adapter lora", ["adapter.kind: lora", "--model FOLDER, or leave out --adapter"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --adapter prompt", ["adapter.kind", "no prompt", "pretrained --model"]),
    ("train text-classification --model {bert} --data.train reviews.csv --adapter prompt --adapter.rank 8", ["adapter.rank: adapter.kind prompt has none", "lora"]),
    ("train text-classification --model {bert} --data.train reviews.csv --adapter lora --adapter.tokens 8", ["adapter.tokens: adapter.kind lora has none", "prompt"]),
    ("train text-classification --model {bert} --data.train reviews.csv --model.rope yarn", ["model.rope: no positions", "--model.context"]),
    ("train text-classification --model {bert} --data.train reviews.csv --task.teacher-weight 0.7", ["task.teacher_weight: there is no teacher", "--task.teacher,"]),
    ("train text-generation --preset gpt2-nano --data.train book.txt --task.teacher-top 8", ["task.teacher_top: there is no teacher", "--task.teacher,"]),
    ("evaluate runs/nowhere", ["runs/nowhere"]),
    ("evaluate book.txt", ["book.txt", "folder or a Hub id"]),
    ("predict runs/nowhere text", ["runs/nowhere"]),
    ("evaluate {bert} --task text-classification --data.test reviews.csv", ["no trained layer"]),
    ("assist ./nowhere.yaml hello", ["nowhere.yaml", "the recipe cannot be read"]),
    ("predict ./nowhere hello --task.threshold 0.3", ["./nowhere: no such folder"]),
    ("evaluate {bert} --data.test reviews.csv", ["no column 'anchor'", "(--data.anchor, --data.positive)"]),
]  # fmt: skip


@pytest.mark.parametrize(("command", "words"), BAD_INPUTS, ids=[command[:70] for command, _ in BAD_INPUTS])
def test_bad_input(
    command: str, words: list[str], here: Path, tiny_bert: Path, trial_cli, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = sorted(path.name for path in here.iterdir())
    folder = hollow(tiny_bert, tmp_path_factory)
    given = command.format(bert=tiny_bert, hollow=folder, mute=folder.parent / "mute").split()
    _refused(trial_cli(given, here), *words)
    left = sorted(path.name for path in here.iterdir())
    assert [name for name in left if name != "runs"] == before
    assert not (here / "runs").exists() or not list((here / "runs").iterdir()), "something half-written stayed"


@pytest.fixture
def trial_cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run the command line in this process, in a folder; returns what a finished process would give."""
    from burnish.cli import main

    def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
        monkeypatch.chdir(folder)
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out, errors = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, caught.value.code, out, " ".join(errors.split()))

    return run


def test_too_large_for_this_machine(here: Path, trial_cli) -> None:
    """Refused by its estimate before anything is built."""
    command = "train text-generation --preset gpt2-xl --model.vocab-size 2000000 --data.train book.txt"
    done = trial_cli(command.split(), here)
    if done.returncode == 2:  # a machine with more than 90 GB of free memory would train it
        _refused(done, "memory", "smaller model")


def test_a_run_folder_of_another_recipe(here: Path, trial_cli) -> None:
    command = [*LM, "--data.train", "book.txt", "--train.length", "2 steps", "--run.dir", "mine"]
    assert trial_cli(command, here).returncode == 0
    done = trial_cli([*command, "--optim.lr", "0.5"], here)
    _refused(done, "another recipe", "optim.lr is 0.5 now, was None")
    (here / "book.txt").write_text((here / "book.txt").read_text() + "\n\nOne more line.\n")
    (here / "mine" / "metrics.json").unlink()
    _refused(trial_cli(command, here), "the data has changed")
    kept = trial_cli([*command, "--run.resume", "never"], here)
    assert kept.returncode == 0 and (here / "mine-previous-1" / "config.yaml").exists()


def test_a_folder_with_other_files_is_left_alone(here: Path, trial_cli) -> None:
    (here / "photos").mkdir()
    (here / "photos" / "cat.png").write_text("cat")
    done = trial_cli([*LM, "--data.train", "book.txt", "--run.dir", "photos"], here)
    _refused(done, "holds other files")
    assert [path.name for path in (here / "photos").iterdir()] == ["cat.png"]


def test_a_task_that_nobody_named_is_said(here: Path, tiny_bert: Path, trial_cli) -> None:
    done = trial_cli(["evaluate", str(tiny_bert), "--data.test", "reviews.csv"], here)
    assert "a model for sentence-similarity; --task names another" in " ".join(done.stdout.split())


def test_an_empty_name_is_no_folder(here: Path, trial_cli) -> None:
    """It would stand for the folder one is in, with all its data."""
    done = trial_cli([*LM, "--data.train", ""], here)
    _refused(done, "data.train", "'' is empty")


def test_what_is_true_or_false_may_be_said_so() -> None:
    from burnish.cli import _expanded
    from burnish.config import Config

    words = ["train", "x", "--data.stratify", "true", "--run.profile", "--run.log-every", "3", "--data.text", "true"]
    wanted = ["train", "x", "--data.stratify=true", "--run.profile", "--run.log-every", "3", "--data.text", "true"]
    assert _expanded(words, Config) == wanted
    assert _expanded(["--run.profile", "False"], Config) == ["--run.profile=false"]


@pytest.mark.parametrize("length", ["-5 steps", "-5", "-1.5 Mtok"])
def test_a_length_below_zero_is_refused(length: str, here: Path, trial_cli) -> None:
    done = trial_cli([*LM, "--data.train", "book.txt", "--train.length", length], here)
    _refused(done, f"train.length: '{length}' is below zero; write \"500 steps\"")


def test_answers_of_every_task_that_generates_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from burnish.terminal import show_answer

    chat = [{"role": "user", "content": "Who?"}]
    for asked in ({"text": "Who?"}, {"prompt": "Who?"}, {"messages": "Who?"}, {"prompt": chat}, {"messages": chat}):
        show_answer({**asked, "generated": "A king."})
        assert capsys.readouterr().out.split() == ["Who?", "A", "king."] or asked == {"text": "Who?"}


def test_on_and_off_in_a_recipe_are_words(tmp_path: Path) -> None:
    """YAML 1.1 would make truth values of them."""
    from burnish.config import Config, parse, read_recipe

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train: {compile: off, packing: off}\nfreeze: {cache: OFF}\ndata: {stratify: true}\n")
    config = parse(read_recipe(recipe), Config, "recipe")
    assert (config.train.compile, config.train.packing, config.freeze.cache) == ("off", "off", "off")
    assert config.data.stratify is True
    assert parse({"freeze": {"cache": "on"}}, Config, "x").freeze.cache == "auto"
    assert parse({"freeze": {"cache": "Cache/On"}}, Config, "x").freeze.cache == "Cache/On"
