"""The ranks of a run and what they say to each other. A run of one process has a group too, which says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from burnish.errors import UserError


class Group:
    """One process of a run, and the others.

    Args:
        rank: of this process, from 0.
        size: how many processes there are.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""
        return self.rank == 0

    def total(self, tensor: Any) -> Any:
        """Return the sum of a tensor over all ranks; it is changed in place."""
        return tensor

    def sums(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Return the sum over all ranks of each named number."""
        return dict(numbers)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on some rank."""
        return flag

    def gather(self, value: Any) -> list[Any]:
        """Return the value of every rank, in their order."""
        return [value]

    def shard(self, model: Any, layers: Any, precision: str) -> None:
        """Spread a model's parameters over the ranks; each layer is put together when it is needed."""

    def whole(self, tensor: Any) -> Any:
        """Return a parameter, or a state of one, in one piece. Every rank has to ask."""
        return tensor

    def put(self, target: Any, whole: Any) -> None:
        """Copy a whole tensor into a parameter, or a state of one."""
        target.copy_(whole)

    def part_of(self, parameter: Any, whole: Any) -> Any:
        """Return a whole tensor spread over the ranks as a parameter of its shape is."""
        return whole

    def leave(self) -> None:
        """End the conversation."""


ALONE = Group()
"""The group of a run of one process."""


class Ranks(Group):
    """A process among several, which meet over a file on this machine.

    Args:
        store: path of the file, in a folder that only this run uses.
        device: "cpu" talks over gloo, "cuda" over NCCL.
    """

    def __init__(self, rank: int, size: int, store: Path, device: str):
        import torch
        from torch import distributed

        super().__init__(rank, size)
        self.kind = device.split(":")[0]
        if self.kind == "cuda":
            torch.cuda.set_device(rank)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if self.kind == "cuda" else "gloo",
            store=distributed.FileStore(str(store), size),
            rank=rank,
            world_size=size,
            timeout=timedelta(minutes=30),
        )

    def total(self, tensor: Any) -> Any:
        from torch import distributed

        distributed.all_reduce(tensor)
        return tensor

    def sums(self, numbers: Mapping[str, float]) -> dict[str, float]:
        import torch

        values = self.total(torch.tensor([float(value) for value in numbers.values()], dtype=torch.float64))
        return dict(zip(numbers, values.tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        return self.sums({"flag": float(flag)})["flag"] > 0

    def gather(self, value: Any) -> list[Any]:
        from torch import distributed

        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def shard(self, model: Any, layers: Any, precision: str) -> None:
        """Spread by FSDP2, layer by layer. Source: Zhao et al. 2023 (PyTorch FSDP), section 3.

        Raises:
            UserError: a parameter is a single number, which cannot be spread.
        """
        import torch
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        lone = next((name for name, value in model.named_parameters() if value.ndim == 0), None)
        if lone is not None:
            raise UserError(
                f"parallel.ranks: {lone} is a single number, which several ranks cannot share. Train on one."
            )
        mesh = init_device_mesh(self.kind, (self.size,))
        computed = torch.bfloat16 if precision == "bf16" else None
        policy = MixedPrecisionPolicy(param_dtype=computed, reduce_dtype=torch.float32)
        for layer in layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)

    def whole(self, tensor: Any) -> Any:
        from torch.distributed.tensor import DTensor

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def put(self, target: Any, whole: Any) -> None:
        target.copy_(self.part_of(target, whole))

    def part_of(self, parameter: Any, whole: Any) -> Any:
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(parameter, DTensor) or whole.shape != parameter.shape:
            return whole
        return distribute_tensor(whole.to(parameter.device), parameter.device_mesh, parameter.placements)

    def leave(self) -> None:
        from torch import distributed

        distributed.destroy_process_group()
