"""Rows of the embeddings for new tokens: how they begin, and how they train while all others stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize


def grow(model: Any, size: int, beginnings: Mapping[int, Sequence[int]]) -> None:
    """Give the embeddings room for `size` tokens, and new tokens their first rows.

    A row of the input embeddings begins as the mean of the rows of some older tokens. Where the output layer has weights of
    its own, a new row begins as the mean of all, which leaves the predictions of the others nearly as they were.

    Args:
        beginnings: the older tokens by the id of each new one.

    Source: Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models" (the output layer).
    """
    if size > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(size, mean_resizing=False)
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    new = list(beginnings)
    first = min(new, default=0)
    with torch.no_grad():
        for token, older in beginnings.items():
            table[token] = table[list(older)].mean(0)
        for value in [] if head is None else head.parameters():
            if value is not table:
                value[new] = value[:first].mean(0)


class Rows(nn.Module):
    """A table of which some rows train: `table` with `rows` [ids, width] at `ids`."""

    def __init__(self, table: nn.Parameter, ids: Sequence[int]):
        super().__init__()
        self.register_buffer("ids", torch.tensor(list(ids), device=table.device), persistent=False)
        self.rows = nn.Parameter(table.detach()[self.ids])

    def forward(self, table: torch.Tensor) -> torch.Tensor:
        """Return the whole table [tokens, width]."""
        return table.index_copy(0, self.ids, self.rows)


def train_rows(model: Any, ids: Sequence[int]) -> None:
    """Let the embeddings of some tokens train, of the input and of the output, and those of no others.

    Where several modules share a table, they share the rows too.
    """
    heads = [model.get_input_embeddings(), model.get_output_embeddings()]
    tables = {id(head.weight): head.weight for head in heads if head is not None}
    for table in tables.values():
        rows = Rows(table, ids)
        table.requires_grad_(False)
        for module in [one for one in model.modules() if one._parameters.get("weight") is table]:
            parametrize.register_parametrization(module, "weight", rows)


def put_together() -> Any:
    """Return the context in which no weight changes, so that whole tables are made once and not in every pass."""
    return parametrize.cached()


def whole_tables(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each name of a module of which some rows train, and all its rows; modules that share them yield the same."""
    found: dict[int, torch.Tensor] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if parametrize.is_parametrized(module, "weight"):
            rows = module.parametrizations.weight
            if id(rows.original) not in found:
                found[id(rows.original)] = module.weight.detach()
            yield name, found[id(rows.original)]
