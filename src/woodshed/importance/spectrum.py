"""Singular values of a mean gradient: what adapters of falling rank could take of it at the first step.

Source: Halko, Martinsson and Tropp 2011, "Finding structure with randomness" (range finder with power iterations, for
a matrix that is at hand); Tropp, Yurtsever, Udell and Cevher 2017, "Practical sketching algorithms for low-rank matrix
approximation" (two products with random matrices, for a sum that is never held).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from woodshed.chance import generator
from woodshed.importance.belief import Spectrum

SMALL = 512
"""Matrices with a side of at most this are decomposed exactly."""
SPARE = 8
"""Directions beside those that are wanted."""


class GradientSketch:
    """Two random products of a sum of matrices (d_out, d_in), from which its singular values can be told.

    Args:
        rank: how many singular values are wanted.
        key: what the random matrices are drawn for.
    """

    def __init__(self, d_out: int, d_in: int, rank: int, *, seed: int, key: str, device: torch.device) -> None:
        # Twice as wide as what is wanted: what lies behind it would pass for the last values.
        width = min(2 * rank + SPARE, d_out, d_in)
        self.rank = rank
        chance = generator(seed, key, "sketch")
        self.columns = _normal(chance, (d_in, width), device)
        self.rows = _normal(chance, (min(2 * width + 1, d_out), d_out), device)
        self.left = torch.zeros(d_out, width, device=device)
        self.right = torch.zeros(len(self.rows), d_in, device=device)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.columns, self.rows, self.left, self.right))

    def add(self, gradient: Float32[Tensor, "d_out d_in"], weight: float) -> None:
        self.left.addmm_(gradient, self.columns, alpha=weight)
        self.right.addmm_(self.rows, gradient, alpha=weight)

    def spectrum(self, *, scale: float, energy: float) -> Spectrum:
        """Of the sum times `scale`.

        Args:
            energy: squared norm of that matrix, as it is known otherwise: what the values leave of it is the rest.
        """
        # Doubles on the CPU: not every device has them.
        basis, _ = torch.linalg.qr(self.left.cpu().double())
        small = torch.linalg.lstsq(self.rows.cpu().double() @ basis, self.right.cpu().double()).solution
        return _told(torch.linalg.svdvals(small)[: self.rank] * abs(scale), energy)


def spectrum_of(matrix: Float[Tensor, "d_out d_in"], rank: int, *, seed: int, key: str) -> Spectrum:
    """The largest singular values of a matrix; by a range finder with two power iterations where it is large.

    >>> spectrum_of(torch.diag(torch.tensor([3.0, 0.0, 2.0])), 1, seed=0, key="x")
    Spectrum(values=(3.0,), rest=4.0)
    """
    whole = float(matrix.float().square().sum(dim=1).cpu().double().sum())
    if min(matrix.shape) <= SMALL:
        small = matrix
    else:
        start = _normal(generator(seed, key, "range"), (matrix.shape[1], rank + SPARE), matrix.device)
        basis, _ = torch.linalg.qr(matrix.float() @ start)
        for _ in range(2):
            basis, _ = torch.linalg.qr(matrix.float() @ torch.linalg.qr(matrix.float().T @ basis)[0])
        small = basis.T @ matrix.float()
    return _told(torch.linalg.svdvals(small.cpu().double())[:rank], whole)


def _told(values: Float64[Tensor, " value"], energy: float) -> Spectrum:
    """In single precision, which the sums are of: the last bits of a decomposition follow from where its arrays happen
    to lie in memory, and equal seeds are to give equal maps."""
    rounded = values.float().double()
    return Spectrum(tuple(rounded.tolist()), max(0.0, energy - float(rounded.square().sum())))


def _normal(chance: np.random.Generator, shape: tuple[int, int], device: torch.device) -> Float32[Tensor, "row column"]:
    return torch.from_numpy(chance.standard_normal(shape, np.float32)).to(device)
