"""The docs are true: their code runs, their commands exist, their reference is the code's, their languages agree."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from burnish.api import resolve
from forks import forks
from helpers import ROOT

GUIDES = [
    ROOT / "README.md",
    ROOT / "docs" / "speed.md",
    ROOT / "docs" / "text-generation.md",
    ROOT / "docs" / "text-classification.md",
    ROOT / "docs" / "token-classification.md",
    ROOT / "docs" / "question-answering.md",
    ROOT / "docs" / "fill-mask.md",
    ROOT / "docs" / "translation.md",
    ROOT / "docs" / "adapters.md",
    ROOT / "docs" / "preferences.md",
    ROOT / "docs" / "sentence-similarity.md",
    ROOT / "docs" / "distillation.md",
    ROOT / "docs" / "image-classification.md",
    ROOT / "docs" / "image-segmentation.md",
    ROOT / "docs" / "object-detection.md",
    ROOT / "docs" / "speech.md",
]


@pytest.fixture(scope="session")
def short_assets(assets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real encoder with one of its layers: the README's example runs on all of it, those of the guides on this."""
    from transformers import AutoModel

    folder = tmp_path_factory.mktemp("assets")
    shutil.copytree(assets["minilm"], folder / assets["minilm"].name)
    AutoModel.from_pretrained(assets["minilm"], num_hidden_layers=1).save_pretrained(folder / assets["minilm"].name)
    return folder


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.S)


@pytest.fixture
def place(
    tmp_path: Path,
    assets: dict[str, Path],
    reviews_file: Path,
    text_file: Path,
    tagged_file: Path,
    questions_file: Path,
    words_file: Path,
    pairs_file: Path,
    alike_file: Path,
    shapes_folder: Path,
    patches_folder: Path,
    boxes_folder: Path,
    songs_folder: Path,
    tones_folder: Path,
) -> Path:
    """A folder with the files the docs speak of."""
    (tmp_path / ".assets").symlink_to(assets["minilm"].parent)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "reviews.csv").write_bytes(reviews_file.read_bytes())
    (tmp_path / "more.csv").write_bytes(reviews_file.read_bytes())
    pairs = [{"question": f"Who goes {place}?", "answer": "The old king."} for place in range(40)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "questions.json").write_bytes(questions_file.read_bytes())
    (tmp_path / "names.jsonl").write_bytes(tagged_file.read_bytes())
    (tmp_path / "pairs.jsonl").write_bytes(words_file.read_bytes())
    turns = [[("user", f"Who goes {place}?"), ("assistant", "The old king.")] for place in range(40)]
    chats = [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in turns]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    (tmp_path / "boxes").symlink_to(boxes_folder)
    (tmp_path / "alike.jsonl").write_bytes(alike_file.read_bytes())
    (tmp_path / "preferences.jsonl").write_bytes(pairs_file.read_bytes())
    (tmp_path / "photos").symlink_to(shapes_folder)
    (tmp_path / "photo.png").write_bytes(next(shapes_folder.rglob("*.png")).read_bytes())
    (tmp_path / "cells").symlink_to(patches_folder)
    (tmp_path / "cell.png").write_bytes(next((patches_folder / "images").iterdir()).read_bytes())
    (tmp_path / "songs").symlink_to(songs_folder)
    (tmp_path / "tones").symlink_to(tones_folder)
    (tmp_path / "speech.wav").write_bytes((songs_folder / "000.wav").read_bytes())
    (tmp_path / "book.txt").write_bytes(text_file.read_bytes())
    return tmp_path


#: Plans each command that it is given, one after the other in one process.
PLAN = """
import json, sys
from burnish.cli import main
for words in json.load(sys.stdin):
    try:
        main([*words, "--dry-run"])
    except SystemExit as done:
        if done.code:
            sys.exit(f"burnish {' '.join(words)}: exit code {done.code}")
"""


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_python_examples_run(guide: Path, place: Path, short_assets: Path) -> None:
    if guide.name != "README.md":
        (place / ".assets").unlink()
        (place / ".assets").symlink_to(short_assets)
    for code in blocks(guide, "python"):
        done = forks().run(code, cwd=place)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_commands_are_understood(guide: Path, place: Path) -> None:
    """Each `burnish train` line plans its run; the other verbs are tried on real runs in tests/test_cli.py."""
    lines = [line for block in blocks(guide, "console") for line in block.splitlines() if line.startswith("burnish ")]
    assert lines
    given = [shlex.split(line, comments=True)[1:] for line in lines]
    planned = [words for words in given if words[0] == "train" and "./gpt2" not in words]
    done = forks().run(PLAN, cwd=place, input=json.dumps(planned))
    assert done.returncode == 0, done.stderr


def test_the_reference_is_the_codes() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    from reference import TARGET, reference

    assert TARGET.read_text() == reference(), "run `make docs`"


def test_both_readmes_have_the_same_commands() -> None:
    english, chinese = ROOT / "README.md", ROOT / "README.zh.md"
    commands = lambda path: [line.split("#")[0].strip() for b in blocks(path, "console") for line in b.splitlines()]  # noqa: E731
    assert commands(english) == commands(chinese)
    assert blocks(english, "python") == blocks(chinese, "python")
    assert english.read_text().count("\n## ") == chinese.read_text().count("\n## ")


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")], ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_says_where_its_figures_are(recipe: Path) -> None:
    resolve(str(recipe), {})
    named = re.findall(r"docs/[a-z-]+\.md", recipe.read_text())
    assert named and all((ROOT / name).is_file() for name in named)
