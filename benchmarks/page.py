"""The page of the benchmarks: every figure in it comes from the results it is given."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]
"""What one measurement printed."""


@dataclass(frozen=True)
class Measured:
    """One benchmark: its results, and when and how they came about."""

    name: str
    results: list[Result]
    threads: int
    seeds: int
    quick: bool
    date: str
    command: str
    commit: str
    load: float
    """Mean number of processes that wanted to run in the minute before it began."""
    environment: dict[str, str]


@dataclass(frozen=True)
class Check:
    """Whether the sides did equal work, in one respect."""

    what: str
    found: str
    passed: bool


#: How far the mean training loss and the held-out loss of two sides may lie apart, as a share of burnish's. Trainer
#: keeps the dropout of frozen layers, so it learns under more noise and its training loss is a little higher.
LOSS_TOLERANCE = 0.20
#: How far the processor time of two sides that were given the same may lie apart.
TIME_TOLERANCE = 0.10

NAMES = {
    "5-gram": "5-gram, interpolated Witten-Bell",
    "6-gram": "6-gram, interpolated Witten-Bell",
    "nanogpt": "nanoGPT's CPU recipe, at its published length",
    "nanogpt-same-time": "nanoGPT's CPU recipe, with burnish's processor time",
    "burnish": "burnish, the recipe",
    "burnish-fp32": "burnish, the recipe in float32",
    "bigram": "bigram from both sides",
    "burnish-same-time": "burnish, about as long as Trainer's defaults take",
    "trainer": "Trainer, its defaults",
    "trainer-bf16": "Trainer, its defaults in bf16",
    "trainer-tuned": "Trainer, tuned: bf16, rows of like length together",
}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; every column but the first is aligned to the right."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Sequence[float], digits: int) -> str:
    """Return the median, and the smallest and largest value in brackets where there are several.

    >>> spread([3.0, 1.0, 2.0], 1)
    '2.0 (1.0 to 3.0)'
    """
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def of_side(results: Iterable[Result], side: str) -> list[Result]:
    """Return the results of one side, by seed."""
    return sorted((result for result in results if result["side"] == side), key=lambda result: result.get("seed", 0))


def sides(results: Iterable[Result]) -> list[str]:
    """Return the names of the sides in the order they first ran."""
    return list(dict.fromkeys(result["side"] for result in results))


def median(results: Sequence[Result], field: str) -> float:
    """Return the median of a field."""
    return statistics.median(result[field] for result in results)


def cpu(result: Result) -> float:
    """Return the processor seconds of training."""
    return result["train"]["cpu"]


def ratios(results: Sequence[Result], side: str, base: str, value: Callable[[Result], float]) -> list[float]:
    """Return, for every seed, a side's value as a multiple of the base's."""
    pairs = zip(of_side(results, side), of_side(results, base), strict=True)
    return [value(result) / value(other) for result, other in pairs]


# -- equal work ------------------------------------------------------------------------------------------------------


def same(results: Sequence[Result], what: str, value: Callable[[Result], Any]) -> Check:
    """Return whether a value is the same in every result."""
    found = {str(value(result)) for result in results}
    return Check(what, ", ".join(sorted(found)), len(found) == 1)


def near(results: Sequence[Result], field: str, what: str) -> list[Check]:
    """Return, for every side but burnish, whether the median of a field is near burnish's."""
    wanted = median(of_side(results, "burnish"), field)
    checks = []
    for side in sides(results):
        if side != "burnish":
            found = median(of_side(results, side), field)
            passed = abs(found - wanted) <= LOSS_TOLERANCE * wanted
            label = f"{what}, {side}: within {LOSS_TOLERANCE:.0%} of burnish's"
            checks.append(Check(label, f"{found:.4f}, burnish {wanted:.4f}", passed))
    return checks


def check_shakespeare(results: Sequence[Result]) -> list[Check]:
    """Return the checks of the text generation benchmark."""
    times = ratios(results, "nanogpt-same-time", "burnish", cpu)
    return [
        same(results, "training rows, hash", lambda result: result["rows"]["train"]),
        same(results, "held-out rows, hash", lambda result: result["rows"]["held_out"]),
        same(results, "held-out bytes scored", lambda result: result["held_out_bytes"]),
        Check(
            f"processor time of the nanoGPT run given burnish's: within {TIME_TOLERANCE:.0%}",
            ", ".join(f"{value:.3f} of burnish's" for value in times),
            all(abs(value - 1) <= TIME_TOLERANCE for value in times),
        ),
    ]


def check_sentiment(results: Sequence[Result]) -> list[Check]:
    """Return the checks of the classification benchmark."""
    trained = [result for result in results if result["side"] != "baselines"]
    steps = {side: of_side(trained, side)[0]["steps"] for side in sides(trained)}
    epochs = trained[0]["epochs"]
    return [
        same(results, "training rows, hash", lambda result: result["rows"]["train"]),
        same(results, "held-out rows, hash", lambda result: result["rows"]["held_out"]),
        same(trained, "rows learned from, over all epochs", lambda result: result["rows_learned"]),
        Check(
            "steps: at most one an epoch apart (Trainer cuts the last batch of each epoch short, burnish goes on into "
            "the next epoch)",
            ", ".join(f"{side} {count}" for side, count in steps.items()),
            max(steps.values()) - min(steps.values()) <= epochs,
        ),
        same(trained, "parameters", lambda result: result["parameters"]),
        same(trained, "parameters that train", lambda result: result["trainable"]),
        Check(
            "weight decay reaches the same parameters",
            "compared by name",
            all(result.get("same_decay", True) for result in trained),
        ),
        *near(trained, "mean_train_loss", "training loss, mean over the run"),
        *near(trained, "loss", "held-out loss"),
    ]


# -- tables ----------------------------------------------------------------------------------------------------------


def shakespeare_table(results: Sequence[Result]) -> str:
    """Return the table of the text generation benchmark, worst side first."""
    order = sorted(sides(results), key=lambda side: -median(of_side(results, side), "bits_per_byte"))
    own_bits = median(of_side(results, "burnish"), "bits_per_byte")
    rows = []
    for side in order:
        own = of_side(results, side)
        rows.append(
            [
                NAMES.get(side, side),
                f"{own[0]['parameters']:,}",
                str(own[0].get("precision", "counts")),
                str(round(median(own, "steps"))) if "steps" in own[0] else "one pass",
                spread([cpu(result) for result in own], 1),
                spread([result["train"]["wall"] for result in own], 1),
                spread([result["bits_per_byte"] for result in own], 3),
                f"{median(own, 'bits_per_byte') / own_bits:.3f}",
            ]
        )
    header = ["", "parameters", "arithmetic", "steps", "processor seconds", "seconds on the wall", "bits per byte"]
    return table([*header, "as a multiple of burnish's"], rows)


def sentiment_table(results: Sequence[Result]) -> str:
    """Return the table of what the sides of the classification benchmark took."""
    trained = [result for result in results if result["side"] != "baselines"]
    rows = []
    for side in sides(trained):
        own = of_side(trained, side)
        rows.append(
            [
                NAMES.get(side, side),
                own[0]["precision"],
                spread([cpu(result) for result in own], 1),
                spread(ratios(trained, side, "burnish", cpu), 2),
                spread([result["rows_learned"] / cpu(result) for result in own], 1),
                spread([result["whole"]["cpu"] for result in own], 1),
            ]
        )
    header = ["", "arithmetic", "processor seconds of training", "as a multiple of burnish's"]
    return table([*header, "rows per processor second", "processor seconds of the whole process"], rows)


def accuracy_table(results: Sequence[Result]) -> str:
    """Return the table of what the sides of the classification benchmark reached."""
    base = of_side(results, "baselines")[0]
    rows = [
        [f"always {base['majority_label']!r}, the commonest label", f"{base['majority']:.4f}", "", "", ""],
        [
            "TF-IDF of words and word pairs, logistic regression",
            f"{base['tfidf']:.4f}",
            f"{base['tfidf_macro_f1']:.4f}",
            "",
            "",
        ],
    ]
    figures = ("accuracy", "macro_f1", "calibration_error", "loss")
    trained = [result for result in results if result["side"] != "baselines"]
    for side in sides(trained):
        own = of_side(trained, side)
        rows.append([NAMES.get(side, side), *(spread([result[name] for result in own], 4) for name in figures)])
    return table(["", "accuracy", "macro F1", "calibration error", "held-out loss"], rows)


def check_table(checks: Sequence[Check]) -> str:
    """Return the table of the checks."""
    rows = ([check.what, check.found, "yes" if check.passed else "**NO**"] for check in checks)
    return table(["Equal work", "found", "passed"], rows)


# -- the page --------------------------------------------------------------------------------------------------------

_HEAD = """# Benchmarks

What burnish reaches and what it takes, beside other code on the same rows. `make bench` runs both sides and writes this
page; no figure is put in by hand.

Every training run has a process of its own, and the sides take turns within each seed. Figures over several seeds are
medians, with the smallest and the largest in brackets. *Processor seconds* are those of all threads of the process;
they are compared, because the time on the wall depends on what else the machine does. A thread that waits for another
uses the processor too."""

_SHAKESPEARE = """## Text generation: Shakespeare

Plays and poems, {held_out_bytes:,} bytes of them held out by a hash of each paragraph. The figure is bits per byte
over every held-out byte, which does not depend on how a side cuts text into tokens; less is better.

- The n-grams count the training bytes and score the held-out text as one stream.
- nanoGPT's published recipe for a processor (4 layers, 128 wide, 64 characters, batch 12, float32) is written anew in
  `benchmarks/nanogpt.py` as a plain PyTorch loop. It is run at its published length, and once more with as much
  processor time as burnish's training took; the decay of the learning rate is then as long as that run. Scored in
  windows of 64 characters, each half a window further. Held-out characters that are not in its vocabulary: {unknown};
  each costs 8 bits a byte on top.
- burnish runs its recipe with a tokenizer learned from the training rows, and also pays for the end of each text,
  which is not counted as a byte.

Processor and wall time are of the training steps alone: no data, tokenizer, evaluation, checkpoint or report on any
side."""

_SENTIMENT = """## Classification: sentiment with a pretrained encoder

Rated sentences of product reviews, tweets, film reviews and newspaper editorials (Hutto and Gilbert 2014):
{train_rows:,} sentences to learn from, {held_out_rows:,} held out by a hash of their text. burnish and Hugging Face's
`Trainer` get the same model, rows, frozen layers, epochs, batch, peak learning rate, warm-up, schedule, weight decay
and clipping. The model of the last step is what is judged; nothing is evaluated or saved on the way.

*Training* is from before the first step to after the last one; for burnish from before frozen layers are computed, which it
does once for each row. *The whole process* adds imports, reading, tokenizing,
loading and the evaluation at the end, and for burnish alone also a checkpoint, the exported model, the bootstrap of the
intervals, the report and the card.

What differs by design: burnish runs frozen layers without dropout, and Trainer, used as documented, with it; the order
of rows and the first weights of the head come from each side's own random numbers; burnish chooses bfloat16 where the
processor is fast at it, and Trainer's default is float32 everywhere. The calibration error is the expected one over ten
bins of the probability given (Guo et al. 2017), less is better."""

_NOT_MEASURED = """## Not measured

| | |
| --- | --- |
| Any of these on a GPU | not measured: these runs used the processor only, on every side |
| `make bench-gpu`: GPT-2 124M and a 1B shape on an H100 | unmeasured so far; it writes `docs/benchmarks-gpu.md` |
| LoRA | not compared |
| sentence-transformers, SetFit | not compared: they learn from pairs of rows, which is other work |
| Several processes or machines | not measured |"""


def environment_table(environment: dict[str, str]) -> str:
    """Return the machine and the versions."""
    return table(["Machine and versions", ""], [[name, value] for name, value in environment.items()])


def origin(measured: Measured) -> str:
    """Return when and how a benchmark was run."""
    text = (
        f"Measured on {measured.date} by `{measured.command}` at commit {measured.commit}, {measured.seeds} seed"
        f"{'s' if measured.seeds > 1 else ''}, {measured.threads} thread{'s' if measured.threads > 1 else ''} a side; load of "
        f"the machine just before: {measured.load:.2f}."
    )
    return text + (" **Made small by --quick: the figures mean nothing.**" if measured.quick else "")


def shakespeare_section(measured: Measured) -> str:
    """Return the section on text generation."""
    results = measured.results
    head = _SHAKESPEARE.format(
        held_out_bytes=results[0]["held_out_bytes"], unknown=of_side(results, "nanogpt")[0]["unknown_characters"]
    )
    return "\n\n".join([head, shakespeare_table(results), check_table(check_shakespeare(results)), origin(measured)])


def sentiment_section(measured: Measured) -> str:
    """Return the section on classification."""
    results = measured.results
    base = of_side(results, "baselines")[0]
    head = _SENTIMENT.format(train_rows=base["train_rows"], held_out_rows=base["held_out_rows"])
    checks = check_table(check_sentiment(results))
    return "\n\n".join([head, sentiment_table(results), accuracy_table(results), checks, origin(measured)])


_QUESTIONS = """## Question answering: a pretrained encoder on Wikipedia, tried on newspaper articles

SQuAD-shifts (Miller et al. 2020), one epoch of the recipe; 2,000 of its test questions are scored. burnish and `Trainer`
get the same first weights, windows, steps, batch, learning rate, schedule and clipping; both models are scored by the
same code. Without a network: the piece of one to five words
around which most words of the question stand."""

_TRANSLATION = """## Translation: English to German from scratch

Texts of a home automation's interface, eight epochs, and burnish once more for as long as Trainer takes. burnish and
`Seq2SeqTrainer` get the same first weights, tokens, steps, batch, learning rate and schedule; both answer greedily and are
scored by the same code. *Copied* is the English text itself, *remembered* the German side of the training text that is
most alike (TF-IDF of two to five letters)."""

_IMAGES = """burnish and `Trainer` get the same first weights, images, steps, batch, learning rate and schedule; both models are
scored by the same code. `Trainer` reads, decodes and processes an image each time it is asked for, as transformers' example
scripts do; *tuned* it computes in bfloat16, and every image was processed once before training, which is not counted. What
burnish computes of frozen layers, once for each image, counts in its training."""

_CLOTHES = f"""## Image classification: a small vision transformer from scratch

Fashion-MNIST (Xiao et al. 2017), two epochs of the recipe. {_IMAGES}"""

_TEXTILES = f"""## Image classification: a head on a frozen backbone

A fifth of the photographs of textiles, two fifths of them held out, DINOv2's small model frozen, ten epochs of its
head. {_IMAGES}"""

_NUCLEI = f"""## Image segmentation: a small SegFormer from scratch

Cell nuclei, 200 steps of the recipe without its varied images. {_IMAGES}"""

_COMPOSITES = f"""## Object detection: a small RT-DETR over a frozen backbone

300 photographs of textiles with pieces of clothing on them, a fifth of them held out, DINOv2's small model frozen, 110 steps of
the recipe without its varied images, its norms by each batch (`train.norm_rows`) on all sides.
`Trainer` learns by transformers' own loss. {_IMAGES}"""

_PROMPTS = """## Speech recognition: Whisper with its encoder frozen

431 prompts of a telephone system (Asterisk's), two epochs of Whisper tiny.en's decoder; 108 prompts that say something else are
held out. burnish and `Trainer` get the same weights, spectra, steps, batch, learning rate and schedule, and the encoder is
frozen on both sides; both models are scored by the same code, greedily. Spectra are made once, before training, for `Trainer`
as in transformers' example script; burnish makes them when it passes the encoder. That pass, once for each sound, is counted
in its training; *epochs 2 and later* are the steps after the first epoch. *Tuned* is bfloat16: to Whisper all sounds are of one
length."""

_GPT3 = """## Pretraining: GPT-3's architecture on prose

Bits per byte of held-out paragraphs beside a byte 5-gram (interpolated Witten-Bell) on the same rows; less is better."""

_BERT = """## Pretraining: BERT's architecture on prose

Hidden tokens guessed in held-out sequences, beside a bigram from both sides, argmax of P(token | before) P(after | token),
on the same tokens."""


def later(result: Result) -> float:
    """Return the processor seconds of the steps after the first epoch."""
    return result["later"]["cpu"]


def task_section(
    head: str, figures: Sequence[str], digits: int, times: Sequence[Callable[[Result], float]] = (cpu,)
) -> Callable[[Measured], str]:
    """Return a function that gives the section of a task.

    Args:
        figures: what is shown of each split that was scored.
        times: what is shown of the time: of training, and of epochs 2 and later.
    """

    def section(measured: Measured) -> str:
        rules, *results = measured.results
        splits = [split for split in ("validation", "test") if split in results[0]]
        shown = [(split, figure) for split in splits for figure in figures]
        rows = [
            [f"{name}, {split}", f"{value:.{digits}f}"]
            for split in splits
            for name, value in rules.get(split, {}).items()
        ]
        sides_rows = []
        for side in sides(results):
            own = of_side(results, side)
            row = [NAMES.get(side, side), own[0]["precision"], f"{own[0]['steps']:,}"]
            for time in times:
                row += [spread(list(map(time, own)), 1), spread(ratios(results, side, "burnish", time), 2)]
            row += [spread([result[split][figure] for result in own], digits) for split, figure in shown]
            sides_rows.append(row)
        header = ["", "arithmetic", "steps"]
        for what in ("training", "epochs 2 and later")[: len(times)]:
            header += [f"processor seconds of {what}", "as a multiple of burnish's"]
        header += [f"{figure}, {split}" for split, figure in shown]
        found = [table(header, sides_rows)] + ([table(["Without a network", ""], rows)] if rows else [])
        found += [examples(figure) for figure in of_side(results, "burnish")[0].get("shown", [])]
        return "\n\n".join([head, *found, check_table(check_task(measured.results)), origin(measured)])

    return section


def examples(figure: dict[str, Any]) -> str:
    """Return the first rows of a table of the report."""
    plain = lambda value: f"{value:.3f}" if isinstance(value, float) else " ".join(str(value).split())  # noqa: E731
    texts = [[plain(value).replace("|", "\\|") for value in row] for row in figure["rows"][:6]]
    cut = [[text if len(text) <= 160 else f"{text[:157]}..." for text in row] for row in texts]
    first, *others = figure["columns"]
    return table([f"{figure['title']} of burnish's first run: {first}", *others], cut)


def check_task(results: Sequence[Result]) -> list[Check]:
    """Return the checks of a text task."""
    trained = [result for result in results[1:] if result["side"] != "burnish-same-time"]
    rows = [result["rows_learned"] for result in trained]
    return [
        same(trained, "steps", lambda result: result["steps"]),
        Check(
            "rows learned from: within 1% (Trainer cuts the last batch of each epoch short)",
            ", ".join(str(count) for count in dict.fromkeys(rows)),
            max(rows) <= 1.01 * min(rows),
        ),
        same(trained, "parameters", lambda result: result["parameters"]),
    ]


def pretraining_section(head: str, figure: str) -> Callable[[Measured], str]:
    """Return a function that gives the section of a pretraining recipe."""

    def section(measured: Measured) -> str:
        rows = [
            [
                NAMES.get(side, side),
                spread([result[figure] for result in of_side(measured.results, side)], 4),
                spread([cpu(result) for result in of_side(measured.results, side)], 1),
            ]
            for side in sides(measured.results)
        ]
        return "\n\n".join([head, table(["", figure.replace("_", " "), "processor seconds"], rows), origin(measured)])

    return section


def no_checks(results: Sequence[Result]) -> list[Check]:
    """Return nothing: the sides are different kinds of things, on the same rows."""
    return []


SECTIONS: dict[str, tuple[str, Callable[[Measured], str], Callable[[Sequence[Result]], list[Check]]]] = {
    "shakespeare": (_SHAKESPEARE, shakespeare_section, check_shakespeare),
    "sentiment": (_SENTIMENT, sentiment_section, check_sentiment),
    "questions": (_QUESTIONS, task_section(_QUESTIONS, ("f1", "exact_match"), 3), check_task),
    "translation": (_TRANSLATION, task_section(_TRANSLATION, ("chrf", "bleu"), 1), check_task),
    "clothes": (_CLOTHES, task_section(_CLOTHES, ("accuracy", "loss"), 3), check_task),
    "textiles": (_TEXTILES, task_section(_TEXTILES, ("accuracy", "loss"), 3), check_task),
    "nuclei": (_NUCLEI, task_section(_NUCLEI, ("mean_iou", "loss"), 3), check_task),
    "composites": (_COMPOSITES, task_section(_COMPOSITES, ("map_50", "map"), 3), check_task),
    "prompts": (_PROMPTS, task_section(_PROMPTS, ("wer", "loss"), 3, (cpu, later)), check_task),
    "gpt3": (_GPT3, pretraining_section(_GPT3, "bits_per_byte"), no_checks),
    "bert": (_BERT, pretraining_section(_BERT, "accuracy"), no_checks),
}
NOT_MEASURED = "Not measured on this machine with these versions."


def sections_of(page: str, environment: dict[str, str]) -> dict[str, str]:
    """Return the sections of a page by their title, if it was made on this machine with these versions; else none."""
    if environment_table(environment) not in page:
        return {}
    return {text.partition("\n")[0]: text.strip() for text in page.split("\n## ")[1:]}


def render(measured: Sequence[Measured], before: str = "", more: Sequence[str] = ()) -> str:
    """Return the page of what was measured, and says what was not.

    Args:
        before: the page so far, whose other sections stay if machine and versions are the same.
        more: further sections.
    """
    there, old = {entry.name: entry for entry in measured}, sections_of(before, measured[0].environment)
    parts = [_HEAD, environment_table(measured[0].environment)]
    for name, (head, section, _) in SECTIONS.items():
        title = head.partition("\n")[0].removeprefix("## ")
        kept = "## " + old.get(title, f"{title}\n\n{NOT_MEASURED}")
        parts.append(section(there[name]) if name in there else kept)
    return "\n\n".join([*parts, *more, _NOT_MEASURED]) + "\n"


def failures(measured: Sequence[Measured]) -> list[str]:
    """Return what was not equal work, one sentence each."""
    return [
        f"{entry.name}: not equal work: {check.what}: {check.found}"
        for entry in measured
        if entry.name in SECTIONS
        for check in SECTIONS[entry.name][2](entry.results)
        if not check.passed
    ]
