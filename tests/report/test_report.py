"""The page and the card of a run, read as their readers do: by an HTML parser, a Markdown parser and a YAML parser."""

from __future__ import annotations

import ast
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from burnish.report.card import escaped, fenced, hub_id, render_card
from burnish.report.charts import MOST_POINTS, Series, line_chart, smooth, thin
from burnish.report.page import render_report
from burnish.run import RunFolder
from runs import PAYLOAD, TABLE_BREAKER, classification_run, generation_run

_VOID = {"meta", "link", "br", "hr", "img", "input"}
#: Attributes by which a page loads something.
_LOADING = {"src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"}


class Page(HTMLParser):
    """What a browser makes of a page: its tags, attributes and text."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == [], "tags left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in _LOADING]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_self_contained(source: str) -> Page:
    page = Page(source)
    assert not {"script", "iframe", "object", "embed", "link", "img", "base", "form"} & set(page.tags)
    assert page.handlers == []
    assert all(load.startswith("#") for load in page.loads)
    assert not re.search(r"@import|url\((?!#)", source)
    assert "http://" not in source and "https://" not in source
    assert len(page.ids) == len(set(page.ids)), "the charts share ids"
    return page


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return generation_run(tmp_path_factory.mktemp("runs") / "tales", skipped=(4, 5, 17))


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    labels = (PAYLOAD, TABLE_BREAKER, "good")
    return classification_run(tmp_path_factory.mktemp("runs") / f"run {PAYLOAD.replace('/', '')}", labels)


@pytest.fixture(scope="module")
def generated_page(generated: RunFolder) -> str:
    return render_report(generated)


@pytest.fixture(scope="module")
def classified_page(classified: RunFolder) -> str:
    return render_report(classified)


# -- the page ----------------------------------------------------------------------------------------------------


def test_page_of_generation_has_figures_and_sections(generated_page: str) -> None:
    text = assert_self_contained(generated_page).text
    for part in (
        "tales",
        "text-generation",
        "finished, 30 steps",
        "validation bits per byte",
        "95 % interval 2.250 to 2.750",
        "1.2 k",  # tokens per second
        "50.0% of 1.0 M",
        "Loss",
        "Learning rate",
        "Gradient norm",
        "Throughput, tokens per second",
        "Validation on the way on 90 of 1,000 examples",
        "54.60",  # perplexity
        "Temperature 0.8",
        "Recipe",
        "preset: gpt2-nano",
        "bfloat16 would be emulated",
        "8.0 GiB",
        "burnish train text-generation --data.train rows.csv",
    ):
        assert part in text
    assert "Confusion" not in text


def test_page_of_classification_has_figures_of_both_splits(classified_page: str) -> None:
    page = assert_self_contained(classified_page)
    for part in ("test accuracy", "0.8820", "Confusion matrix validation", "Confusion matrix test", "Calibration test"):
        assert part in page.text
    assert "rows per second" in page.text
    assert "fine-tuned from sentence-transformers/all-MiniLM-L6-v2" in page.text
    # loss wide and narrow, three of training, five metrics on the way, two reliability diagrams
    assert page.tags.count("svg") == 2 + 3 + 5 + 2


def test_payloads_are_shown_as_text(classified_page: str, generated_page: str) -> None:
    shown = Page(classified_page).text
    assert PAYLOAD in shown and TABLE_BREAKER in shown
    assert "run <script>" in shown  # the run's name
    shown = Page(generated_page).text
    assert f"The {PAYLOAD} went\n\n  {PAYLOAD} away" in shown
    assert f"rows.csv:7: has no column {PAYLOAD}" in shown


def test_skipped_steps_are_noted_and_break_no_chart(generated_page: str) -> None:
    text = Page(generated_page).text
    assert "3 steps were skipped" in text
    assert "step 17, training rows 3, 14, first bad gradient transformer.wte.weight" in text
    assert "1 row was broken and left out" in text
    assert "nan" not in text.lower().split()


def test_a_run_without_validation_leaves_its_sections_out(tmp_path: Path) -> None:
    text = assert_self_contained(render_report(generation_run(tmp_path / "run", validation=False))).text
    assert "training loss" in text
    for absent in ("Validation on the way", "Metrics", "95 %", "Notes"):
        assert absent not in text


def test_a_run_without_any_usable_step_is_shown(tmp_path: Path) -> None:
    folder = generation_run(tmp_path / "run", skipped=(1, 2), steps=2, validation=False)
    assert "2 steps were skipped" in assert_self_contained(render_report(folder)).text
    folder.log.unlink()
    assert "Loss" not in assert_self_contained(render_report(folder)).text


def test_a_run_that_is_not_finished_says_so(tmp_path: Path) -> None:
    folder = generation_run(tmp_path / "run")
    folder.figures.unlink()
    folder.log.write_text("".join(folder.log.read_text().splitlines(keepends=True)[:12]))
    assert "not finished: 12 of 30 steps" in Page(render_report(folder)).text
    assert "not finished: 12 of 30 steps" in render_card(folder)


def test_an_early_end_and_a_step_done_again_are_told(tmp_path: Path) -> None:
    folder = classification_run(tmp_path / "run")
    lines = folder.log.read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"step": 40' not in line]
    folder.log.write_text("".join([*kept, kept[-1]]))
    folder.figures.write_text(folder.figures.read_text().replace('"step": 40', '"step": 20'))
    text = Page(render_report(folder)).text
    assert "finished early, after 39 of 40 steps" in text
    assert "The run ended early" in text
    assert "those of step 20, the best by accuracy" in text
    assert "those of step 20, the best by validation accuracy" in render_card(folder)


def test_the_same_run_gives_the_same_bytes(generated: RunFolder, generated_page: str) -> None:
    assert render_report(generated) == generated_page
    assert render_card(generated) == render_card(generated)


def test_rendering_leaves_pyplot_alone_and_writes_nothing(generated: RunFolder, generated_page: str) -> None:
    import sys

    before = sorted(generated.path.rglob("*"))
    had_pyplot = "matplotlib.pyplot" in sys.modules  # torchmetrics imports it where it can
    render_report(generated)
    assert sorted(generated.path.rglob("*")) == before
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


# -- charts ------------------------------------------------------------------------------------------------------


def test_every_figure_of_every_task_is_explained() -> None:
    from burnish.report.facts import METRICS
    from burnish.task import registry
    from burnish.tasks.speech_t5 import SpeechT5

    assert (
        not {name for task in [*registry().values(), SpeechT5] for name in getattr(task, "metric_names", ())}
        - METRICS.keys()
    )


def test_thinning_keeps_spikes_and_the_limit() -> None:
    points = [(x, 1.0) for x in range(50_001)]
    points[31_415] = (31_415, 9.0)
    points[27_182] = (27_182, -9.0)
    thinned = thin(points)
    assert len(thinned) <= MOST_POINTS
    assert (31_415, 9.0) in thinned and (27_182, -9.0) in thinned
    assert thinned == sorted(thinned)
    assert thin(points[:MOST_POINTS]) == points[:MOST_POINTS]


def test_a_long_run_makes_a_small_chart() -> None:
    svg = line_chart("long", "Long", [Series([(x, float(x * 7919 % 1000)) for x in range(200_000)])], size="wide")
    assert len(svg) < 100_000


def test_smoothing_keeps_steps_and_means() -> None:
    points = [(x, float(x)) for x in range(20)]
    assert smooth(points, 5)[:15] == points[:15]  # a straight line stays one
    assert smooth([(1, 2.0)], 5) == [(1, 2.0)]
    assert smooth([], 5) == []


def test_charts_take_their_colours_from_the_page() -> None:
    svg = line_chart("one", 'A "label"', [Series([(1, 1.0), (2, 3.0)])], marks=[1], ring=(2, 3.0))
    assert "var(--first)" in svg and "var(--muted)" in svg and "var(--warning)" in svg
    assert not re.search(r"#[0-9a-f]{6}", svg)
    assert 'aria-label="A &#34;label&#34;"' in svg
    assert "font-family" not in svg and "<style" not in svg


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [5.0], [-1.0, 2.0], [1e-9, 1e9, 1.0], [3.0] * 3000])
def test_odd_values_are_drawn(values: list[float]) -> None:
    points = list(enumerate(values))
    for from_zero in (False, True):
        assert line_chart("odd", "Odd", [Series(points)], from_zero=from_zero).startswith("<svg")


# -- the card ----------------------------------------------------------------------------------------------------


def _front(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def _blocks(card: str, language: str) -> list[str]:
    return [token.content for token in MarkdownIt().parse(card) if token.type == "fence" and token.info == language]


def test_card_of_generation(generated: RunFolder) -> None:
    card = render_card(generated)
    front = _front(card)
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["burnish", "text-generation"],
    }
    assert "| validation | perplexity | 54.60 | 49.14 to 60.06 |" in card
    assert "| peak learning rate | 0.0005 |" in card
    assert "0123456789abcdef" in card
    assert "3 of the logged steps made no update" in card
    assert any("AutoModelForCausalLM" in code for code in _blocks(card, "python"))


def test_card_of_classification_names_its_base_model(classified: RunFolder) -> None:
    card = render_card(classified)
    assert _front(card)["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert any("AutoModelForSequenceClassification" in code for code in _blocks(card, "python"))
    assert "| test | accuracy | 0.8820 | 0.7938 to 0.9702 |" in card


def test_code_of_the_card_is_code(generated: RunFolder, classified: RunFolder) -> None:
    for folder in (generated, classified):
        card = render_card(folder)
        python = _blocks(card, "python")
        assert len(python) == 2
        for code in python:
            ast.parse(code)
        texts = {node.value for node in ast.walk(ast.parse(python[0])) if isinstance(node, ast.Constant)}
        assert str(folder) in texts


def test_recipe_of_the_card_gives_the_run_again(classified: RunFolder) -> None:
    (recipe,) = _blocks(render_card(classified), "yaml")
    assert yaml.safe_load(recipe) == yaml.safe_load(classified.config.read_text())


def test_recipe_of_the_card_names_another_folder(tmp_path: Path) -> None:
    folder = generation_run(tmp_path / "run")
    with open(folder.config, "a") as config:
        config.write("run: {dir: somewhere/run, seed: 3}\n")
    (recipe,) = _blocks(render_card(folder), "yaml")
    assert yaml.safe_load(recipe)["run"] == {"seed": 3}
    assert any(f"--run.dir '{folder}-again'" in code or f"--run.dir {folder}-again" in code
               for code in _blocks(render_card(folder), "sh"))  # fmt: skip


def test_tables_of_the_card_hold_what_they_are_given(classified: RunFolder) -> None:
    """Every table keeps its columns, and the labels come out of a Markdown parser as they went in."""
    tokens = MarkdownIt().enable("table").parse(render_card(classified))
    assert not [token for token in tokens if token.type.startswith("html")]
    cells = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "td_open"]
    texts = ["".join(child.content for child in cell.children or []) for cell in cells]
    assert PAYLOAD in texts
    assert " ".join(TABLE_BREAKER.split()) in texts
    assert not [child for cell in cells for child in cell.children or [] if child.type not in ("text", "text_special")]
    titles = [tokens[i + 1].children for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert "".join(child.content for child in titles[0] or []) == classified.path.name


@pytest.mark.parametrize(
    "text", ["plain", "a|b", "`code`", "*bold* _em_", "[a](b)", "<b>&amp;</b>", "back\\slash", "~~x~~ $y$", "![i](j)"]
)
def test_escaped_text_stays_itself(text: str) -> None:
    table = f"| a | b |\n| --- | --- |\n| {escaped(text)} | end |\n"
    tokens = MarkdownIt().enable(["table", "strikethrough"]).parse(table)
    cells = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "td_open"]
    assert ["".join(child.content for child in cell.children or []) for cell in cells] == [text, "end"]


def test_a_fence_is_longer_than_what_it_holds() -> None:
    (token,) = MarkdownIt().parse(fenced("a\n```\nb\n`````\nc", "yaml"))
    assert token.content == "a\n```\nb\n`````\nc\n"


def test_only_names_of_the_hub_are_base_models(tmp_path: Path) -> None:
    assert hub_id("gpt2") == "gpt2"
    assert hub_id("org/model") == "org/model"
    for local in (None, ".assets/model", "/models/bert", "~/bert", "a/b/c", str(tmp_path)):
        assert hub_id(local) is None
