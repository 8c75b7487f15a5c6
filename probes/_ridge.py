"""Linear regression of every split, penalty and labelling of one set of rows, in one pass.

Rows are read once: each fold's Gram matrix serves every split that keeps the fold. A split's
normal matrix is brought to tridiagonal form once, which costs as much as four Cholesky
factorisations and then answers every penalty and every right-hand side in linear time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property

import numpy as np

from interp import InterpError

EPS = np.finfo(np.float64).eps
BLOCK = 32  # rows of a normal matrix made at a time


class Design:
    """Rows [n d] in folds, with targets [n r]: what every split of them shares.

    Args:
        x: [n d]; a centred float64 copy is kept.
        folds: [n], from 0.
        targets: [n r].
        standardize: divide by the standard deviation of the rows that a split's base keeps.
    """

    def __init__(
        self, x: np.ndarray, folds: np.ndarray, targets: np.ndarray, *, standardize: bool = True
    ) -> None:
        self.targets, self.standardize = targets, standardize
        self.rows = [np.flatnonzero(folds == fold) for fold in range(int(folds.max()) + 1)]
        # Shifted to about zero, since means far from it would cost digits; no result depends on
        # where exactly. The median of the folds' means: an outlier in one fold does not move it.
        means = [x[rows].mean(axis=0, dtype=np.float64) for rows in self.rows if len(rows)]
        self.origin = np.median(means, axis=0)
        self.x = x - self.origin
        self.counts = np.array([len(rows) for rows in self.rows])
        parts = [self.x[rows] for rows in self.rows]
        self.sums = np.stack([part.sum(axis=0) for part in parts])
        self.squares = np.stack([np.einsum("nd,nd->d", part, part) for part in parts])

    @cached_property
    def grams(self) -> list[np.ndarray]:
        """X'X of each fold."""
        return [(part := self.x[rows]).T @ part for rows in self.rows]

    @cached_property
    def cross(self) -> np.ndarray:
        """X'Y of each fold: [fold d r]."""
        return np.stack([self.x[rows].T @ self.targets[rows] for rows in self.rows])

    def kept(self, excluded: Collection[int]) -> list[int]:
        """The folds that are not excluded."""
        return [fold for fold in range(len(self.rows)) if fold not in excluded]


class Base:
    """A training set (all folds but some) and the scale that it gives to the features."""

    def __init__(self, design: Design, excluded: Collection[int] = ()) -> None:
        self.design, self.excluded = design, tuple(excluded)
        kept = design.kept(excluded)
        n = design.counts[kept].sum()
        mean = design.sums[kept].sum(axis=0) / n
        self.scale = np.ones_like(mean)
        if design.standardize:
            variance = np.maximum(design.squares[kept].sum(axis=0) / n - np.square(mean), 0)
            # scikit-learn's rule for what is constant; such a feature is centred, not scaled.
            floor = n * EPS * variance + np.square(n * (mean + design.origin) * EPS)
            self.scale = np.where(variance <= floor, 1.0, np.sqrt(variance))

    @cached_property
    def kernel(self) -> np.ndarray:
        """Inner products of all scaled rows: [n n], for where rows are fewer than features."""
        scaled = self.design.x / self.scale
        return scaled @ scaled.T

    def split(self, *also_excluded: int) -> Split:
        """The training set without some more folds, on the same scale."""
        return Split(self, (*self.excluded, *also_excluded))


class Split:
    """The centred regression of targets on scaled features over the rows kept.

    Primal (features as unknowns) or dual (rows as unknowns), whichever is smaller; both solve
    `(matrix + penalty) solution = rhs` and predict `at(rows) @ solution + target_mean`.
    """

    def __init__(self, base: Base, excluded: Collection[int]) -> None:
        design = base.design
        self.base, self.design = base, design
        self.folds = design.kept(excluded)
        self.train = np.concatenate([design.rows[fold] for fold in self.folds])
        self.n = len(self.train)
        self.mean = design.sums[self.folds].sum(axis=0) / self.n
        self.target_mean = design.targets[self.train].mean(axis=0)
        self.dual = self.n < design.x.shape[1]

    def matrix(self) -> np.ndarray:
        """[m m], made anew at each call, so that a factorisation may overwrite it."""
        if self.dual:
            means = self._kernel_means
            inner = self.base.kernel[np.ix_(self.train, self.train)]
            inner -= means
            inner -= means[:, None]
            inner += means.mean()
            return inner
        # Summed over the folds kept, not the total less the rest: a fold with an outlier would
        # leave its rounding error behind. Some rows at a time, which stay in the cache meanwhile.
        grams, inverse = [self.design.grams[fold] for fold in self.folds], 1 / self.base.scale
        centre = self.n * self.mean
        gram = np.empty_like(grams[0])
        for start in range(0, len(gram), BLOCK):
            here = slice(start, start + BLOCK)
            block = gram[here]
            block[:] = grams[0][here]
            for other in grams[1:]:
                block += other[here]
            block -= np.outer(centre[here], self.mean)
            block *= inverse[here, None]
            block *= inverse
        return gram

    @property
    def rhs(self) -> np.ndarray:
        """[m r]."""
        if self.dual:
            return self.design.targets[self.train] - self.target_mean
        return self.moments

    @cached_property
    def moments(self) -> np.ndarray:
        """Scaled, centred X'Y: [d r]."""
        cross = self.design.cross[self.folds].sum(axis=0)
        cross -= self.n * np.outer(self.mean, self.target_mean)
        return cross / self.base.scale[:, None]

    def at(self, rows: np.ndarray) -> np.ndarray:
        """What a solution multiplies to predict these rows: [row m]."""
        if not self.dual:
            return self.scaled(rows)
        inner = self.base.kernel[np.ix_(rows, self.train)]
        return inner - self._kernel_means - inner.mean(axis=1)[:, None] + self._kernel_means.mean()

    def scaled(self, rows: np.ndarray) -> np.ndarray:
        """Centred and scaled features: [row d]."""
        found = self.design.x[rows]
        found -= self.mean
        found /= self.base.scale
        return found

    def weights(self, solution: np.ndarray) -> np.ndarray:
        """A solution as weights of scaled features: [d r]."""
        return self.scaled(self.train).T @ solution if self.dual else solution

    def fitted(self, rhs: np.ndarray, solution: np.ndarray, penalty: float) -> np.ndarray:
        """Y'X (X'X + penalty)^-1 X'Y of some columns; both in the same coordinates."""
        return rhs.T @ (rhs - penalty * solution) if self.dual else rhs.T @ solution

    @cached_property
    def _kernel_means(self) -> np.ndarray:
        return self.base.kernel[np.ix_(self.train, self.train)].mean(axis=0)


class Tridiagonal:
    """A symmetric A = Q T Q' with T tridiagonal, for (A + penalty)^-1 at many penalties.

    Args:
        matrix: [m m], float64, which is overwritten.
    """

    def __init__(self, matrix: np.ndarray) -> None:
        from scipy.linalg import lapack

        work = int(lapack.dsytrd_lwork(len(matrix), lower=1)[0])
        packed, self.diagonal, self.off, self._tau, _ = lapack.dsytrd(
            matrix.T, lower=1, lwork=work, overwrite_a=1
        )
        self._reflectors = np.asfortranarray(packed[1:, :-1])

    def rotate(self, columns: np.ndarray, *, back: bool = False) -> np.ndarray:
        """Q' columns, or Q columns: [m r]."""
        from scipy.linalg import lapack

        out = np.array(columns, dtype=np.float64, order="F")
        if len(out) > 1 and out.shape[1]:  # Q leaves the first coordinate as it is
            work = 64 * out.shape[1]
            turn = "N" if back else "T"
            out[1:], *_ = lapack.dormqr("L", turn, self._reflectors, self._tau, out[1:], work)
        return out

    def solve(self, penalty: float, columns: np.ndarray) -> np.ndarray:
        """(T + penalty)^-1 of rotated columns: [m r]."""
        from scipy.linalg import lapack

        shifted = self.diagonal + penalty
        if len(shifted) == 1:
            return columns / shifted
        *_, found, info = lapack.dptsv(shifted, self.off, columns)
        if info:  # not positive, to rounding
            *_, found, info = lapack.dgtsv(self.off, shifted, self.off, columns)
        if info:
            raise InterpError(f"penalty {penalty:g} leaves the regression singular; raise it")
        return found


def solve_once(matrix: np.ndarray, penalty: float, rhs: np.ndarray) -> np.ndarray:
    """(A + penalty)^-1 rhs by one Cholesky factorisation; the matrix stays as it is."""
    from scipy.linalg import lapack

    shifted = matrix.copy()
    shifted.flat[:: len(shifted) + 1] += penalty
    *_, found, info = lapack.dposv(shifted.T, rhs, lower=1, overwrite_a=1)
    if info:
        tridiagonal = Tridiagonal(matrix.copy())
        return tridiagonal.rotate(tridiagonal.solve(penalty, tridiagonal.rotate(rhs)), back=True)
    return found


def solutions(
    split: Split, rows: np.ndarray, penalties: Sequence[float]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each penalty: predictions of `rows` before the mean [row r], rhs and solution, rotated.

    With many right-hand sides the rows are rotated instead of the solutions.
    """
    tridiagonal = Tridiagonal(split.matrix())
    at, rhs = split.at(rows), tridiagonal.rotate(split.rhs)
    if rhs.shape[1] * len(penalties) > len(at):
        at = tridiagonal.rotate(at.T).T
        for penalty in penalties:
            solution = tridiagonal.solve(penalty, rhs)
            yield at @ solution, rhs, solution
        return
    found = [tridiagonal.solve(penalty, rhs) for penalty in penalties]
    back = tridiagonal.rotate(np.concatenate(found, axis=1), back=True)
    ahead = np.split(at @ back, len(found), axis=1)
    yield from ((part, rhs, solution) for part, solution in zip(ahead, found, strict=True))
