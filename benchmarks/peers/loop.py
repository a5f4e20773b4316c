"""A plain PyTorch loop in nanoGPT's manner, on given rows: the whole model compiled, bf16 autocast, fused AdamW.

    python -m benchmarks.peers.loop FOLDER

Source of the manner: nanoGPT's train.py (Karpathy 2022): autocast, cross-entropy over all logits, gradients clipped, the
next batch fetched while this one computes. All rows must be equally long and all tokens targets.
"""

from __future__ import annotations

import sys

from benchmarks.gauge import Gauge, show
from benchmarks.peers.given import Given, Tally, held_out_loss, versions


def measure(given: Given) -> None:
    """Train and print what it took and what it reached. Compiling is the first, untimed step."""
    import torch
    from torch.nn import functional

    torch.set_float32_matmul_precision("high")
    gauge, tally = Gauge(given.untimed), Tally(given.untimed)
    model = given.model().to(given.device).train()
    compiled = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr, weight_decay=0.0, fused=True)
    order = given.order()
    tokens = torch.tensor([row["input_ids"] for row in given.rows()])[order]

    def batch(step: int) -> torch.Tensor:
        ids = tokens[step * given.batch : (step + 1) * given.batch]
        return ids.pin_memory().to(given.device, non_blocking=True) if given.device != "cpu" else ids

    gauge.begin()
    ids = batch(0)
    for step in range(given.steps):
        with torch.autocast(given.device, dtype=torch.bfloat16):
            logits = compiled(input_ids=ids[:, :-1], use_cache=False).logits
            loss = functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        done, ids = ids, batch(step + 1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), given.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tally.add({"input_ids": done, "labels": done}, loss.detach())
        gauge.step()
    show(
        {
            **gauge.result(),
            **tally.result(),
            "held_out": held_out_loss(given, model.state_dict()),
            "precision": "bf16",
            "arguments": {"torch.compile": "whole model", "autocast": "bfloat16", "AdamW": "fused"},
            "versions": versions(),
        }
    )


if __name__ == "__main__":
    measure(Given.read(sys.argv[1]))
