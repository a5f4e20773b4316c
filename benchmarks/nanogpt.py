"""A plain PyTorch loop with nanoGPT's published recipe for a processor, on burnish's rows.

    python -m benchmarks.nanogpt [--seed 0] [--iterations 2000 | --cpu-seconds 300] [--precision fp32|bf16]

Source of the recipe: nanoGPT's README, "I only have a macbook", and config/train_shakespeare_char.py (Karpathy 2022).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.clock import Moment
from benchmarks.rows import RECIPES, digest, read_split, stream

#: Iterations that are not timed: the first ones also allocate memory and pick kernels.
UNTIMED = 10


@dataclass(frozen=True)
class Recipe:
    """nanoGPT's settings for a processor. Dropout is 0 there, so there is none here."""

    layers: int = 4
    heads: int = 4
    width: int = 128
    block: int = 64
    batch: int = 12
    lr: float = 1e-3
    last_lr: float = 1e-4
    warmup: int = 100
    iterations: int = 2000
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.1
    clip: float = 1.0

    def lr_at(self, iteration: int, iterations: int) -> float:
        """Return the learning rate of an iteration, counted from 0: linear warm-up, then half a cosine wave."""
        if iteration < self.warmup:
            return self.lr * (iteration + 1) / (self.warmup + 1)
        progress = min((iteration - self.warmup) / max(iterations - self.warmup, 1), 1.0)
        return self.last_lr + (self.lr - self.last_lr) * (1 + math.cos(math.pi * progress)) / 2


class Block(nn.Module):
    """One layer: causal self-attention and a feed-forward network, each after a norm and added to its input."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.feed_norm = nn.LayerNorm(width, bias=False)
        self.feed_in = nn.Linear(width, 4 * width, bias=False)
        self.feed_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.query_key_value(self.attention_norm(x)).unflatten(2, (3, self.heads, -1)).unbind(2)
        mixed = functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), is_causal=True
        )
        x = x + self.attention_out(mixed.transpose(1, 2).flatten(2))
        return x + self.feed_out(functional.gelu(self.feed_in(self.feed_norm(x))))


class Gpt(nn.Module):
    """A GPT-2 without biases whose input embedding is its output layer too.

    Source: Radford et al. 2019, section 2.3 (initial weights: N(0, 0.02), those that end a residual branch smaller by
    one over the root of the number of branches).
    """

    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__()
        self.characters = nn.Embedding(vocabulary, recipe.width)
        self.positions = nn.Embedding(recipe.block, recipe.width)
        self.layers = nn.ModuleList(Block(recipe.width, recipe.heads) for _ in range(recipe.layers))
        self.norm = nn.LayerNorm(recipe.width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                branch = name.endswith(("attention_out.weight", "feed_out.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * recipe.layers) if branch else 0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits of the character after each one."""
        x = self.characters(ids) + self.positions(torch.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return functional.linear(self.norm(x), self.characters.weight)


@dataclass(frozen=True)
class Vocabulary:
    """The characters of the training text."""

    characters: tuple[str, ...]

    @staticmethod
    def of(text: str) -> Vocabulary:
        """Return the vocabulary of a text."""
        return Vocabulary(tuple(sorted(set(text))))

    def encode(self, text: str) -> tuple[torch.Tensor, list[str]]:
        """Return the ids of a text, and its characters that are not in the vocabulary; id 0 stands in for those."""
        ids = {character: number for number, character in enumerate(self.characters)}
        unknown = [character for character in text if character not in ids]
        return torch.tensor([ids.get(character, 0) for character in text]), unknown


@dataclass
class Trained:
    """A model and what it took."""

    model: Gpt
    vocabulary: Vocabulary
    losses: list[float]
    spent: dict[str, float]


def arithmetic(precision: str) -> AbstractContextManager[Any]:
    """Return the context the model computes in. Published is float32: nanoGPT turns autocast off on a processor."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def make_optimizer(model: Gpt, recipe: Recipe) -> torch.optim.Optimizer:
    """Return AdamW that decays every parameter of two dimensions, embeddings too, as nanoGPT does."""
    decaying = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": decaying, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), fused=True)


def train(
    text: str, recipe: Recipe, *, seed: int, cpu_seconds: float | None = None, precision: str = "fp32"
) -> Trained:
    """Train on a text and return the model.

    Args:
        text: the training text; each iteration draws `batch` places of it.
        cpu_seconds: processor time to spend in place of `recipe.iterations`. The warm-up is timed, and the length of
            the decay follows from it; the warm-up itself does not depend on the length.
    """
    torch.manual_seed(seed)
    vocabulary = Vocabulary.of(text)
    ids, _ = vocabulary.encode(text)
    model = Gpt(recipe, len(vocabulary.characters))
    optimizer = make_optimizer(model, recipe)
    losses: list[float] = []

    def go_on(until: int, iterations: int) -> Moment:
        while len(losses) < until:
            lr = recipe.lr_at(len(losses), iterations)
            losses.append(update(model, optimizer, draw(ids, recipe), recipe, lr, precision))
        return Moment.now()

    started, iterations = Moment.now(), recipe.iterations
    if cpu_seconds is not None:
        until = max(recipe.warmup, UNTIMED + 1)
        untimed = go_on(UNTIMED, until)
        timed = go_on(until, until)
        left = cpu_seconds - timed.since(started)["cpu"]
        iterations = until + max(0, round(left * (until - UNTIMED) / timed.since(untimed)["cpu"]))
    return Trained(model, vocabulary, losses, go_on(iterations, iterations).since(started))


def draw(ids: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Return a batch of pieces from random places: `block` characters and the one after them."""
    places = torch.randint(len(ids) - recipe.block, (recipe.batch, 1))
    return ids[places + torch.arange(recipe.block + 1)]


def update(
    model: Gpt, optimizer: torch.optim.Optimizer, pieces: torch.Tensor, recipe: Recipe, lr: float, precision: str
) -> float:
    """Make one step and return its loss in nats."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    with arithmetic(precision):
        logits = model(pieces[:, :-1])
        loss = functional.cross_entropy(logits.float().flatten(0, 1), pieces[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    return loss.item()


def windows(length: int, block: int) -> list[tuple[int, int]]:
    """Return `(end, first scored)` of the windows over a text: each moves on by half a block, all are scored once."""
    found = [(min(block, length), 0)]
    while found[-1][0] < length:
        scored = found[-1][0]
        found.append((min(scored + block // 2, length), scored))
    return found


def evaluate(trained: Trained, text: str, block: int, precision: str = "fp32") -> dict[str, Any]:
    """Return bits per byte over every byte of a text.

    The first character is predicted from a line's end. A character the training text does not have costs 8 bits for
    each of its bytes, on top of what the model asks for the character that stands in for it.
    """
    ids, unknown = trained.vocabulary.encode("\n" + text)
    size = len(text)
    block = min(block, size)
    nats = 0.0
    places = windows(size, block)
    with torch.inference_mode(), arithmetic(precision):
        for first in range(0, len(places), 64):
            ends = torch.tensor([end for end, _ in places[first : first + 64]])
            scored = torch.tensor([start for _, start in places[first : first + 64]])
            at = ends[:, None] - block + torch.arange(block)  # of the character predicted; its input is one before
            losses = functional.cross_entropy(
                trained.model(ids[at]).float().flatten(0, 1), ids[at + 1].flatten(), reduction="none"
            ).view(at.shape)
            nats += float(losses.double()[at >= scored[:, None]].sum())
    size_bytes = len(text.encode())
    bits = nats / math.log(2) + 8 * sum(len(character.encode()) for character in unknown)
    return {"bits_per_byte": bits / size_bytes, "held_out_bytes": size_bytes, "unknown_characters": len(unknown)}


def measure(
    rows_of: Path, recipe: Recipe, *, seed: int, cpu_seconds: float | None = None, precision: str = "fp32"
) -> dict[str, Any]:
    """Return what a run reached on the held-out rows of a burnish recipe, and what it took.

    Args:
        rows_of: a burnish recipe; only its data is used.
    """
    split = read_split(rows_of)
    trained = train(stream(split.train), recipe, seed=seed, cpu_seconds=cpu_seconds, precision=precision)
    return {
        "side": "nanogpt" if cpu_seconds is None else "nanogpt-same-time",
        "seed": seed,
        "threads": torch.get_num_threads(),
        "precision": precision,
        **evaluate(trained, stream(split.held_out), recipe.block, precision),
        "parameters": sum(parameter.numel() for parameter in trained.model.parameters()),
        "steps": len(trained.losses),
        "train_loss": sum(trained.losses[-20:]) / len(trained.losses[-20:]),
        "train": trained.spent,
        "rows": {"train": digest(split.train), "held_out": digest(split.held_out)},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train once and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPES / "gpt2-shakespeare.yaml", help="whose data to use")
    parser.add_argument("--seed", type=int, default=0)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--iterations", type=int, help="default: the published 2000")
    budget.add_argument("--cpu-seconds", type=float)
    parser.add_argument("--warmup", type=int, default=Recipe.warmup, help="iterations; also what --cpu-seconds times")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    recipe = replace(Recipe(), iterations=given.iterations or Recipe.iterations, warmup=given.warmup)
    result = measure(given.recipe, recipe, seed=given.seed, cpu_seconds=given.cpu_seconds, precision=given.precision)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
