"""Which heads of a projection a tensor's matrices belong to: heads of equal features share what is solved for."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Heads:
    """Heads of a projection, as one operand of a product reads them.

    Attributes:
        features: numbers of each head's features in the projection, `[heads, width]`.
        pattern: for each matrix of a sample the head that it is of, `[matrices per sample]`; every head has equally many.
    """

    features: torch.Tensor
    pattern: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor, samples: int) -> Heads | str:
        """Read off the numbers of features at every entry, or why they are no heads.

        Args:
            features: `[samples x matrices per sample, rows, width]`.
        """
        if bool((features != features[:, :1]).any()):
            return "its rows are made of different features"
        numbers, heads = features[:, 0].unique(dim=0, return_inverse=True)
        by_sample = heads.reshape(samples, -1)
        counts = by_sample[0].bincount(minlength=len(numbers))
        if bool((by_sample != by_sample[:1]).any()) or bool((counts != counts[0]).any()) or len(numbers.unique()) != numbers.numel():
            return "its heads share features"
        return cls(numbers.long(), by_sample[0])

    @property
    def all(self) -> frozenset[int]:
        """Every feature of every head."""
        return frozenset(self.features.flatten().tolist())

    def split(self, rows: torch.Tensor) -> torch.Tensor:
        """`[samples x matrices per sample, rows, width]` as `[heads, samples x matrices of a head, rows, width]`."""
        order = self.pattern.argsort(stable=True)
        by_sample = rows.reshape(-1, len(self.pattern), *rows.shape[1:])[:, order]
        return by_sample.unflatten(1, (len(self.features), -1)).transpose(0, 1).flatten(1, 2)

    def spread(self, matrices: torch.Tensor, count: int) -> torch.Tensor:
        """A tensor per head, `[heads, ...]`, as one for each of `count` matrices."""
        return matrices[self.pattern.repeat(count // len(self.pattern))]
