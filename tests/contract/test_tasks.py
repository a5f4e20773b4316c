"""What every registered task promises; a new task is tested by being there."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

import burnish
from burnish.config import TaskSettings, config_class, explained
from burnish.errors import Stopped
from burnish.task import find_task, registry
from burnish.terminal import Terminal
from forks import forks
from helpers import After, first_step, result_of, session_of

QUIET = Terminal(quiet=True)
ASKED: dict[str, list] = {
    "reward-modeling": [
        {"prompt": "Was the king good?", "chosen": " He was good."},
        {"prompt": "Was the king good?", "chosen": " He was poor."},
    ],
    "fill-mask": ["the good old [MASK]", "never a [MASK] stone"],
    "text-to-speech": ["ab cd", "dad"],
    "text-to-speech/speecht5": ["ab cd", "dad"],
    "question-answering": [
        {"question": "Was the king good?", "context": "the good old king"},
        {"question": "Was the stone poor?", "context": "never a poor stone"},
    ],
}
"""What is asked of tasks that need more than a text."""
METRICS = {
    "automatic-speech-recognition/whisper": {"wer", "cer", "loss"},
    "image-segmentation/objects": {"map", "map_50", "map_75", "mean_recall"},
    "text-to-speech/speecht5": {"mel_error", "end_error", "loss"},
}
"""Of what a task is with another kind of model: its name, what sets it apart, and what it measures then."""
WORKS = sorted([*registry(), *METRICS])


def task_of(work: str) -> str:
    """Return the name of a work's task."""
    return work.partition("/")[0]


@pytest.fixture
def toy(
    text_file: Path,
    reviews_file: Path,
    tiny_bert: Path,
    words_file: Path,
    tagged_file: Path,
    questions_file: Path,
    pairs_file: Path,
    alike_file: Path,
    shapes_folder: Path,
    boxes_folder: Path,
    patches_folder: Path,
    tones_folder: Path,
    songs_folder: Path,
    speech_t5: Path,
) -> dict[str, dict]:
    """A small problem for each task: settings, and how far the loss must fall."""
    problems: dict[str, dict] = {
        "text-generation": {
            "model": {"preset": "gpt2-nano", "vocab_size": 300},
            "data": {"train": str(text_file)},
            "train": {"length": "30 steps", "batch": 8, "sequence": 32, "dropout": 0.1},
            "optim": {"lr": 3e-3},
            "generate": {"max_tokens": 4},
        },
        "fill-mask": {
            "model": {"preset": "bert-nano", "vocab_size": 300},
            "data": {"train": str(text_file)},
            "train": {"length": "30 steps", "batch": 8, "sequence": 32},
            "optim": {"lr": 3e-3},
        },
        **{
            name: {
                "model": {"preset": preset, "vocab_size": 300},
                "data": {"train": str(words_file)},
                "train": {"length": "30 steps", "batch": 8, "sequence": 32},
                "optim": {"lr": 3e-3},
            }
            for name, preset in (("translation", "transformer-nano"), ("summarization", "t5-nano"))
        },
        "reward-modeling": {
            "model": {"path": str(tiny_bert)},
            "data": {"train": str(pairs_file), "prompt": "prompt"},
            "train": {"length": "30 steps", "batch": 8},
            "optim": {"lr": 5e-3},
        },
        "sentence-similarity": {
            "model": {"path": str(tiny_bert)},
            "data": {"train": str(alike_file)},
            "train": {"length": "30 steps", "batch": 8, "micro_batch": 3},
            "optim": {"lr": 2e-3},
        },
        "audio-classification": {
            "model": {"preset": "w2v-bert-nano"},
            "data": {"train": str(tones_folder)},
            "task": {"seconds": 2},
            "augment": {"noise": 0.1, "gain": 6, "speed": 0.1, "mask_time": 0.1, "mask_frequency": 0.1},
            "train": {"length": "22 steps", "batch": 8},
            "optim": {"lr": 1e-3},
        },
        "automatic-speech-recognition": {
            "model": {"preset": "w2v-bert-nano"},
            "data": {"train": str(songs_folder), "group": "singer", "holdout": "20%"},
            "task": {"seconds": 2},
            "augment": {"noise": 0.1, "speed": 0.1, "mask_frequency": 0.05},
            "train": {"length": "22 steps", "batch": 8},
            "optim": {"lr": 2e-3},
        },
        "automatic-speech-recognition/whisper": {
            "model": {"preset": "whisper-nano"},
            "data": {"train": str(songs_folder), "holdout": "10%"},
            "task": {"seconds": 2},
            "augment": {"noise": 0.1, "speed": 0.1},
            "train": {"length": "22 steps", "batch": 4},
            "optim": {"lr": 2e-3},
        },
        "text-to-speech": {
            "model": {"preset": "fastspeech-nano"},
            "data": {"train": str(songs_folder)},
            "task": {"seconds": 2},
            "train": {"length": "24 steps", "batch": 8},
            "optim": {"lr": 2e-3},
        },
        "text-to-speech/speecht5": {
            "model": {"path": str(speech_t5)},
            "data": {"train": str(songs_folder)},
            "task": {"seconds": 2},
            "train": {"length": "24 steps", "batch": 8},
            "optim": {"lr": 5e-3},
        },
        "image-classification": {
            "model": {"preset": "vit-nano", "image_size": 16},
            "data": {"train": str(shapes_folder)},
            "augment": {"flip": "both", "shift": 0.1, "color": 0.2, "mixup": 0.1},
            "train": {"length": "30 steps", "batch": 16},
            "optim": {"lr": 2e-3},
        },
        "object-detection": {
            "model": {"preset": "yolos-nano", "image_size": 32},
            "data": {"train": str(boxes_folder)},
            "task": {"tile": 40},
            "augment": {"flip": "both", "crop": 0.9},
            "train": {"length": "30 steps", "batch": 16},
            "optim": {"lr": 2e-3},
        },
        "image-segmentation": {
            "model": {"preset": "segformer-nano", "image_size": 32},
            "data": {"train": str(patches_folder)},
            "augment": {"flip": "both", "shift": 0.1, "color": 0.2},
            "train": {"length": "30 steps", "batch": 8},
            "optim": {"lr": 3e-3},
        },
        "image-segmentation/objects": {
            "model": {"preset": "mask2former-nano", "image_size": 64},
            "data": {"train": str(patches_folder)},
            "augment": {"flip": "both", "shift": 0.1, "color": 0.2},
            "train": {"length": "24 steps", "batch": 4},
            "optim": {"lr": 2e-3},
        },
        "text-classification": {
            "model": {"path": str(tiny_bert)},
            "data": {"train": str(reviews_file)},
            "train": {"length": "60 steps", "batch": 16},
            "optim": {"lr": 5e-3},
        },
        "preference-tuning": {
            "model": {"preset": "gpt2-nano", "vocab_size": 300},
            "data": {"train": str(pairs_file), "prompt": "prompt"},
            "train": {"length": "24 steps", "batch": 8, "sequence": 64},
            "optim": {"lr": 1e-3},
            "generate": {"max_tokens": 4},
        },
        "question-answering": {
            "model": {"path": str(tiny_bert)},
            "data": {"train": str(questions_file)},
            "train": {"length": "30 steps", "batch": 16, "sequence": 32},
            "optim": {"lr": 5e-3},
        },
        "token-classification": {
            "model": {"path": str(tiny_bert)},
            "data": {"train": str(tagged_file)},
            "train": {"length": "30 steps", "batch": 16},
            "optim": {"lr": 5e-3},
        },
    }
    always = {"precision": "fp32", "evaluate_every": "20 steps"}
    return {name: {**given, "train": always | given["train"]} for name, given in problems.items()}


def asked_of(name: str, toy: dict[str, dict]) -> list:
    """Return two inputs of a task."""
    reads = registry()[task_of(name)].reads
    if reads != "text" and name not in ASKED:
        kind = "*.png" if reads == "images" else "*.wav"
        return [str(path) for path in sorted(Path(toy[name]["data"]["train"]).rglob(kind))[:2]]
    return ASKED.get(name, ["the good old king", "never a poor stone"])


@pytest.mark.parametrize("name", WORKS)
class TestTask:
    def test_is_documented(self, name: str) -> None:
        task = registry()[task_of(name)]
        assert find_task(task.name) is task
        assert task.__doc__ and inspect.getmodule(task).__doc__
        assert issubclass(task.Settings, TaskSettings)
        explained(config_class(task.Settings))
        for field, info in task.Settings.model_fields.items():
            assert info.description, f"{name}: task.{field} has no description"
        for member, value in vars(task).items():
            overrides = any(member in vars(base) for base in task.__mro__[1:])
            if inspect.isfunction(value) and not member.startswith("_") and not overrides:
                assert value.__doc__, f"{name}.{member} has no docstring"

    def test_learns_is_deterministic_and_resumes_bit_equal(
        self, name: str, toy: dict[str, dict], tmp_path: Path
    ) -> None:
        assert name in toy, f"add a toy problem for {name}"
        first = burnish.train(task_of(name), terminal=QUIET, run={"dir": str(tmp_path / "first")}, **toy[name])
        losses = [line["loss"] for line in first.history if "loss" in line]
        assert sum(losses[-5:]) < 0.85 * sum(losses[:5]), "does not learn"
        measured = METRICS.get(name) or set(registry()[name].metric_names)
        assert set(first.metrics["validation"]) == measured

        folder = tmp_path / "stopped"
        with pytest.raises(Stopped, match="saved at step 20"):
            burnish.train(task_of(name), terminal=After(20), run={"dir": str(folder)}, **toy[name])
        resumed = burnish.train(task_of(name), terminal=QUIET, run={"dir": str(folder)}, **toy[name])
        assert result_of(resumed.path) == result_of(first.path), "not deterministic, or does not resume bit-equal"

        asked = asked_of(name, toy)
        answers = resumed.predict(asked)
        assert len(answers) == 2 and answers == resumed.predict(asked)
        assert resumed.evaluate()["metrics"] == pytest.approx(resumed.metrics["validation"], rel=1e-6)

    @pytest.mark.gpu
    def test_a_gpu_learns_what_a_processor_learns(self, name: str, toy: dict[str, dict], tmp_path: Path) -> None:
        """The first steps in float32 (later ones magnify rounding), and what the trained model answers there."""
        losses = {}
        for device in ("cpu", "cuda"):
            given = {**toy[name], "run": {"dir": str(tmp_path / device), "device": device}}
            given["train"] = {**toy[name]["train"], "length": "12 steps", "dropout": 0}
            run = burnish.train(task_of(name), terminal=QUIET, **given)
            losses[device] = [line["loss"] for line in run.history if "loss" in line]
            assert len(run.predict(asked_of(name, toy))) == 2
            assert run.evaluate()["metrics"] == pytest.approx(run.metrics["validation"], rel=1e-3, abs=1e-6)
        assert losses["cuda"][:2] == pytest.approx(losses["cpu"][:2], rel=1e-3)

    def test_the_gradient_does_not_depend_on_how_a_step_is_cut(
        self, name: str, toy: dict[str, dict], tmp_path: Path
    ) -> None:
        """Micro-batches of one row, of three, and all at once; end to end where the model takes it, and padded.

        The weights are shaken first: a fresh model says the same of every row, so that gradients of comparisons cancel.
        """
        wanted = None
        for packing, micro_batches in (("auto", (8, 3, 1)), ("off", (8,))):
            given = {**toy[name], "train": {**toy[name]["train"], "batch": 8, "dropout": 0}}
            given["train"] |= {"micro_batch": 8, "packing": packing}
            session = session_of(task_of(name), tmp_path / "run", **given)
            session.join()
            draw = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for value in session.job.model.parameters():
                    value += 0.1 * torch.randn(value.shape, generator=draw)
            for micro_batch in micro_batches:
                session.job.loader.micro_batch = micro_batch
                loss, gradient = first_step(session)
                wanted = wanted or (float(loss), gradient)
                assert float(loss) == pytest.approx(wanted[0], rel=1e-5)
                assert float((gradient - wanted[1]).norm() / wanted[1].norm()) <= 1e-5, (micro_batch, packing)


def test_another_task_needs_one_file_and_no_edit(tmp_path: Path, reviews_file: Path, tiny_bert: Path) -> None:
    """A task dropped into the tasks folder is found, has its settings on the command line, and trains."""
    import burnish.tasks

    source = Path(burnish.tasks.__path__[0]) / "text_classification.py"
    extra = tmp_path / "extra" / "burnish_extra"
    extra.mkdir(parents=True)
    text = source.read_text().replace('name = "text-classification"', 'name = "mood-classification"')
    (extra / "mood.py").write_text(text)
    code = (
        f"import burnish.tasks; burnish.tasks.__path__.append({str(extra)!r})\n"
        "from burnish.cli import main\n"
        f"main(['train', 'mood-classification', '--model', {str(tiny_bert)!r}, '--data.train', {str(reviews_file)!r},"
        f" '--train.length', '4 steps', '--run.dir', {str(tmp_path / 'run')!r}])\n"
    )
    done = forks().run(code)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists()
