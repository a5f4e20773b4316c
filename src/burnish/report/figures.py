"""The figures a task returns, as sections of the page. A new kind is one function, named in `FIGURES`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

from markupsafe import Markup

from burnish.report.charts import calibration_chart

Figure = dict[str, Any]

#: Share from which a cell of the matrix is so dark that its text is light.
_DARK = 0.66


def draw(figure: Figure) -> Markup | None:
    """Return a task's figure as a section of the page; None for an unknown kind and where there is nothing to show."""
    renderer = FIGURES.get(figure.get("kind", ""))
    body = renderer(figure) if renderer else None
    if not body:
        return None
    wide = figure["kind"] in ("texts", "table", "pictures") or len(figure.get("labels", [])) > 8
    split = Markup(' <span class="split">{}</span>').format(figure["split"]) if figure.get("split") else ""
    return Markup('<section class="panel{}"><h2>{}{}</h2>{}</section>').format(
        " wide" if wide else "", figure.get("title", ""), split, body
    )


def matrix(figure: Figure) -> Markup | None:
    """Return a confusion matrix as a table; a cell is as dark as its share of its row, that is, of the true label."""
    labels, values = figure["labels"], figure["values"]
    total = sum(map(sum, values))
    if not total:
        return None
    sizes = [sum(row) for row in values]
    head = Markup("").join(Markup('<th scope="col" title="{0}"><span>{0}</span></th>').format(name) for name in labels)
    rows = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}<td class="sum">{}</td></tr>').format(
            label, Markup("").join(_cell(value, size) for value in row), f"{row[index] / size:.1%}" if size else "–"
        )
        for index, (label, row, size) in enumerate(zip(labels, values, sizes, strict=True))
    )
    columns = [sum(column) for column in zip(*values, strict=True)]
    precision = Markup("").join(
        Markup('<td class="sum">{}</td>').format(f"{values[i][i] / size:.1%}" if size else "–")
        for i, size in enumerate(columns)
    )
    look = " many" if len(labels) > 8 else " few" if len(labels) < 5 else ""
    common = max(range(len(sizes)), key=sizes.__getitem__)
    return Markup(
        '<div class="scroll"><table class="matrix{}"><thead><tr><th class="corner">true ↓&ensp;predicted →</th>{}'
        '<th scope="col" class="sum"><span>recall</span></th></tr></thead><tbody>{}'
        '<tr><th scope="row" class="sum">precision</th>{}<td></td></tr></tbody></table></div>'
        '<p class="hint">{} rows. Always answering “{}” would be right in {} of them.</p>'
    ).format(look, head, rows, precision, f"{total:,}", labels[common], f"{sizes[common] / total:.1%}")


def _cell(value: int, size: int) -> Markup:
    share = value / size if size else 0
    return Markup('<td class="cell{}" style="--share: {}%" title="{}">{}</td>').format(
        " strong" if share > _DARK else "", f"{100 * share:.0f}", f"{share:.1%} of the row", f"{value:,}"
    )


def calibration(figure: Figure) -> Markup | None:
    """Return a reliability diagram."""
    if not figure["points"]:
        return None
    name = f"calibration {figure.get('split', '')}"
    return Markup('<figure>{}<p class="hint">{}</p></figure>').format(
        calibration_chart(name, "Accuracy over confidence", figure["points"]),
        "On the dashed line the model is right as often as it is sure; below it, it is too sure of itself. Bars: the "
        "share of all rows in each bin.",
    )


def texts(figure: Figure) -> Markup | None:
    """Return generated texts by temperature, each with its prompt in bold."""
    parts = []
    ordered = sorted(figure["rows"], key=lambda row: row["temperature"])
    for temperature, rows in groupby(ordered, key=lambda row: row["temperature"]):
        how = "always the likeliest token" if temperature == 0 else "sampled"
        samples = Markup("").join(
            Markup('<p class="sample"><b>{}</b>{}</p>').format(row["prompt"], row["text"]) for row in rows
        )
        head = Markup("<h3>Temperature {} <span>{}</span></h3>").format(f"{temperature:g}", how)
        parts.append(head + Markup('<div class="samples">{}</div>').format(samples))
    return Markup("").join(parts)


def table(figure: Figure) -> Markup | None:
    """Return rows of a table; numbers stand to the right."""
    if not figure["rows"]:
        return None
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in figure["columns"])
    rows = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(_entry(value) for value in row)) for row in figure["rows"]
    )
    return Markup(
        '<div class="scroll"><table class="table"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(head, rows)


def pictures(figure: Figure) -> Markup | None:
    """Return small pictures with their captions; the address of each holds its bytes, so the page stays whole in itself."""
    parts = [
        Markup('<figure><img src="{}" alt="{}"><figcaption>{}</figcaption></figure>').format(
            one["image"], one["caption"], one["caption"]
        )
        for one in figure["pictures"]
        if one["image"].startswith("data:image/")
    ]
    return Markup('<div class="pictures">{}</div>').format(Markup("").join(parts)) if parts else None


def _entry(value: Any) -> Markup:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Markup('<td class="number">{}</td>').format(f"{value:,}" if isinstance(value, int) else f"{value:.4g}")
    return Markup("<td>{}</td>").format(value)


#: Kind to its renderer: figure to what stands below its title, or None if there is nothing to show.
FIGURES: dict[str, Callable[[Figure], Markup | None]] = {
    "matrix": matrix,
    "calibration": calibration,
    "texts": texts,
    "table": table,
    "pictures": pictures,
}
