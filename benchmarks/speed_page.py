"""The speed section of the page: one table of ratios, and behind each of them what shows that the work was equal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter

from benchmarks.page import NOT_MEASURED, Check, Measured, Result, of_side, origin, same, table
from benchmarks.speed import SIDES, WORKS, Goal, Work
from burnish.units import readable_bytes

#: How far a peer's loss may lie from burnish's, as a share of it: in the same order of rows, and in an order of its own.
SAME_ORDER, OWN_ORDER = 0.005, 0.15


def clock(result: Result) -> str:
    """Return which clock counts: processor time, or on an accelerator, which that does not see, the wall's."""
    return "wall" if "accelerator" in result["memory"] else "cpu"


def peak(result: Result) -> int:
    """Return the most memory held while training, in bytes: of the accelerator if there is one."""
    return result["memory"].get("accelerator") or result["memory"]["peak"]


def rate(result: Result) -> float:
    """Return real tokens a second, padding not counted."""
    return result["timed_tokens"] / result["train"][clock(result)]


#: What a goal can be about: what it costs, in a unit of which less is better.
MEASURES: dict[str, Callable[[Result], float]] = {
    "rate": lambda result: 1 / rate(result),
    "memory": peak,
    "start": lambda result: result["start"]["cpu"],
    "resume": lambda result: result["first"]["cpu"],
}


def ratio(goal: Goal, ours: float, peer: float) -> float:
    """Return the peer's cost as a multiple of ours; of memory, ours as a share of the peer's."""
    return ours / peer if goal.measure == "memory" else peer / ours


def ratios(results: Sequence[Result], goal: Goal) -> tuple[float, list[float]]:
    """Return the ratio of the best runs of both, and the ratio of each turn."""
    cost = MEASURES[goal.measure]
    ours, peer = ([cost(result) for result in of_side(results, name)] for name in (goal.ours, goal.peer))
    return ratio(goal, min(ours), min(peer)), [ratio(goal, *pair) for pair in zip(ours, peer, strict=True)]


def verdict(goal: Goal, reached: float) -> str:
    """Return whether a ratio reaches its goal, or at least the floor below which it is not done."""
    if goal.goal is None or goal.floor is None:
        return ""
    sign = -1 if goal.measure == "memory" else 1
    if sign * reached >= sign * goal.goal:
        return "goal"
    return "floor" if sign * reached >= sign * goal.floor else "**NO**"


# -- equal work ------------------------------------------------------------------------------------------------------


def last_losses(result: Result, steps: int) -> float:
    """Return the mean training loss of the last steps."""
    return sum(result["losses"][-steps:]) / len(result["losses"][-steps:])


def checks(work: Work, results: Sequence[Result], goal: Goal) -> list[Check]:
    """Return what must agree between two sides before their ratio means anything.

    The training loss is that of the last fifth of the steps; of the last epoch, so of the same rows, where orders differ.
    """
    ours, peer = (of_side(results, name) for name in (goal.ours, goal.peer))
    found = [same([*ours, *peer], what, itemgetter(what)) for what in ("steps", "rows", "tokens", "targets")]
    for name in ("torch", "transformers"):
        found.append(same([*ours, *peer], name, lambda result, name=name: result["versions"][name]))
    steps, what, tolerance = max(1, len(ours[0]["losses"]) // 5), "the last fifth of the steps", SAME_ORDER
    if SIDES[goal.peer].own_order:
        steps, what, tolerance = work.steps_per_epoch, "the last epoch", OWN_ORDER
    losses: list[tuple[str, Callable[[Result], float]]] = [
        (f"training loss of {what}", lambda result: last_losses(result, steps)),
        ("held-out loss, float32", itemgetter("held_out")),
    ]
    for what, loss in losses:
        wanted, got = loss(ours[0]), loss(peer[0])
        passed = abs(wanted - got) <= tolerance * abs(wanted)
        found.append(Check(f"{what}: within {tolerance:.1%}", f"{wanted:.4f} and {got:.4f}", passed))
    return found


def failures(measured: Measured, work: Work) -> list[str]:
    """Return what was not equal work, and which floors were missed, one sentence each."""
    results = measured.results
    found = []
    for goal in shown_goals(work, results):
        pair = f"{measured.name}, {goal.ours} and {goal.peer}"
        wrong = [check for check in checks(work, results, goal) if not check.passed]
        found += [f"{pair}: not equal work: {check.what}: {check.found}" for check in wrong]
        reached, _ = ratios(results, goal)
        if not wrong and verdict(goal, reached) == "**NO**" and not measured.quick:
            found.append(f"{pair}: {reached:.2f}, the floor is {goal.floor}")
    return found


# -- the section -----------------------------------------------------------------------------------------------------


def shown_goals(work: Work, results: Sequence[Result]) -> list[Goal]:
    """Return the goals whose two sides were both measured."""
    there = {result["side"] for result in results}
    return [goal for goal in work.goals if {goal.ours, goal.peer} <= there]


def row(work: Work, results: Sequence[Result], goal: Goal) -> list[str]:
    """Return a row of the table."""
    ours, peer = (min(of_side(results, name), key=MEASURES[goal.measure]) for name in (goal.ours, goal.peer))
    reached, turns = ratios(results, goal)
    equal = all(check.passed for check in checks(work, results, goal))
    asked = "" if goal.goal is None else f"{goal.goal:g} ({goal.floor:g})"
    if goal.measure in ("start", "resume"):
        shown = " / ".join(f"{MEASURES[goal.measure](result):.2f} s" for result in (ours, peer))
    else:
        shown = " / ".join(f"{rate(result):,.0f}" for result in (ours, peer))
    return [
        goal.title or work.title,
        SIDES[goal.peer].title,
        ("at most " if goal.measure == "memory" else "") + asked,
        f"**{reached:.2f}** ({min(turns):.2f} to {max(turns):.2f})" if equal else "none: not equal work",
        shown,
        " / ".join(readable_bytes(peak(result)) for result in (ours, peer)),
        verdict(goal, reached) if equal else "**NO**",
    ]


def sides_table(results: Sequence[Result]) -> str:
    """Return what each side took and reached, the best and the worst of its turns."""
    rows = []
    for name in dict.fromkeys(result["side"] for result in results):
        own = of_side(results, name)
        best = min(own, key=lambda result: result["train"][clock(result)])
        seconds = [result["train"][clock(result)] for result in own]
        positions = best.get("positions")
        rows.append(
            [
                SIDES[name].title,
                best["precision"],
                str(best["steps"]),
                f"{min(seconds):.2f} to {max(seconds):.2f}",
                f"{max(result['first']['wall'] for result in own):.2f}",
                f"{best['start']['cpu']:.2f}",
                f"{1 - best['tokens'] / positions:.0%}" if positions else "",
                " to ".join(readable_bytes(best["memory"][when]) for when in ("before", "peak")),
                f"{last_losses(best, max(1, best['steps'] // 5)):.4f}",
                f"{best['held_out']:.4f}",
            ]
        )
    header = ["side", "arithmetic", "steps", "seconds of training", "first step, wall", "start to first step"]
    return table([*header, "padding", "memory before, at most", "training loss", "held-out loss"], rows)


def arguments_of(name: str, result: Result) -> str:
    """Return everything a side was given besides its defaults."""
    given = result["arguments"]
    text = given["recipe"].strip() if "recipe" in given else json.dumps(given, indent=1)
    return f"{SIDES[name].title}:\n\n```\n{text}\n```"


def details(measured: Measured, work: Work) -> str:
    """Return what stands behind the rows of a work, folded away."""
    results = measured.results
    parts = [sides_table(results)]
    for goal in shown_goals(work, results):
        rows = [[c.what, c.found, "yes" if c.passed else "**NO**"] for c in checks(work, results, goal)]
        parts.append(table([f"{SIDES[goal.ours].title} and {SIDES[goal.peer].title}", "found", "equal"], rows))
    parts += [arguments_of(name, of_side(results, name)[0]) for name in dict.fromkeys(r["side"] for r in results)]
    return "\n\n".join([f"<details>{summary(work)}", *parts, origin(measured), "</details>"])


def summary(work: Work) -> str:
    """Return the line that is seen of what stands behind a work."""
    return f"<summary>{work.title}: sides, equal work, arguments</summary>"


TITLE = "Speed: the same work, side by side"
_HEAD = """Every side is handed the same model, encoded rows, order of rows, batch, epochs, optimizer (AdamW, constant learning
rate, clipping at 1, no weight decay), no dropout, one thread, and runs in a process of its own; sides take turns. A ratio is
printed only where steps, rows, real tokens and targets are equal and both losses agree: within {same:.1%} in the same order
of rows, whatever the arithmetic; within {own:.0%} where the peer must order them itself (`group_by_length`), which makes
it another run of the same work. The held-out loss is that of the final
weights of each side, computed by the same lines of plain transformers in float32.

- *Ratio*: processor time of the peer over burnish's, best run over best run, with the range over the turns in brackets.
  It counts from before the first step to after the last, the filling of burnish's cache of frozen layers included. Of
  causal language models the first {untimed} steps, in which things compile and allocate, are left out on every side;
  what the first step took stands in the details.
- *Tokens* are real ones: padding is no work. *Memory* is the peak of the whole process while it trains.
- *Tuned*: for Trainer bf16 and `group_by_length`; for TRL no activation recomputation, and `group_by_length` where rows are
  ragged. TRL's padding-free and packed modes need FlashAttention, so not a processor; its output layer scores ignored
  positions too where there is no Triton.
- *Passed*: `goal` and `floor` say how far a ratio comes; below the floor it is a **NO**."""


def tables(measured: Sequence[Measured], works: Mapping[str, Work], before: str = "") -> list[str]:
    """Return the table of ratios, a row for every goal of every work, and what stands behind each work.

    Args:
        before: these tables so far, of which what was not measured now stays.
    """
    there = {entry.name: entry for entry in measured}
    rows, folded = [], []
    for name, work in works.items():
        if name in there:
            rows += [row(work, there[name].results, goal) for goal in shown_goals(work, there[name].results)]
            folded.append(details(there[name], work))
            continue
        old_rows, old_details = kept(work, before)
        rows += old_rows or [[work.title, "", "", NOT_MEASURED, "", "", ""]]
        folded += old_details
    header = ["work", "peer", "goal (floor)", "ratio", "tokens a second, ours / peer", "memory, ours / peer", "passed"]
    return [table(header, rows), *folded]


def kept(work: Work, page: str) -> tuple[list[list[str]], list[str]]:
    """Return the rows of a work in a page, and what stands behind them."""
    titles = {goal.title or work.title for goal in work.goals}
    cells = [
        line.removeprefix("| ").removesuffix(" |").split(" | ") for line in page.splitlines() if line.startswith("| ")
    ]
    rows = [found for found in cells if found[0] in titles and NOT_MEASURED not in found]
    details = [f"<details>{text}" for text in page.split("<details>")[1:] if text.startswith(summary(work))]
    return rows, [text.partition("</details>")[0] + "</details>" for text in details]


def section(measured: Sequence[Measured], before: str = "") -> str:
    """Return the section of the works, in the order of the list.

    Args:
        before: the section so far, of which what was not measured now stays.
    """
    untimed = max(work.untimed for work in WORKS.values())
    head = _HEAD.format(same=SAME_ORDER, own=OWN_ORDER, untimed=untimed)
    return "\n\n".join([f"## {TITLE}", head, *tables(measured, WORKS, before)])
