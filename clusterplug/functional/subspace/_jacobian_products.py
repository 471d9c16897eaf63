# SPDX-License-Identifier: Apache-2.0
"""Products with the Jacobian of a function, many columns at once."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from clusterplug.core.checks import check_finite, check_mask
from clusterplug.core.numerics import host_checks_allowed, plain_attention, working_dtype


class Jacobian:
    """Products with the Jacobian of ``fn`` at ``x``: blocks of columns in float64, passes in the type of ``x``."""

    def __init__(self, fn: Callable[[Tensor], Tensor], x: Tensor, mask: Tensor | None, chunk_size: int | None):
        if not callable(fn):
            raise TypeError(f'fn must be a function of one tensor, got {type(fn).__name__}')
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f'x must be a floating tensor, got {getattr(x, "dtype", type(x).__name__)}')
        if not x.numel():
            raise ValueError(f'x must hold at least one number, got shape {tuple(x.shape)}')
        if host_checks_allowed(x):
            check_finite(x.detach().reshape(1, -1), 'x')
        self.x, self.chunk_size = x.detach().to(working_dtype(x.dtype)).clone(), chunk_size
        self.passes = 0
        with plain_attention():
            y, again = fn(self.x), fn(self.x)
        if not isinstance(y, Tensor) or not y.is_floating_point():
            raise TypeError(f'fn must return a floating tensor, got {getattr(y, "dtype", type(y).__name__)}')
        if not y.numel():
            raise ValueError(f'fn must return at least one number, got shape {tuple(y.shape)}')
        if not torch.allclose(y, again, rtol=1e-3, atol=1e-3 * float(y.abs().amax().nan_to_num(0, 0)), equal_nan=True):
            raise ValueError('fn must return the same for the same x, got other numbers; call model.eval()')
        if mask is not None:
            if not isinstance(mask, Tensor):
                raise TypeError(f'mask must be a bool tensor (True = takes part), got {type(mask).__name__}')
            try:
                wide = mask.expand(y.shape)
            except RuntimeError:
                wide = mask
            check_mask(wide, tuple(y.shape), y.device)
            self.fn = lambda x: torch.where(wide, fn(x), 0.0)
        else:
            self.fn = fn
        self.shape, self.dtype = y.shape, y.dtype
        self.sides = (y.numel(), self.x.numel())
        self.least = min(self.sides)

    def forward(self, v: Tensor) -> Tensor:
        """J v, for columns (n, k)."""
        return self._columns(lambda t: jvp(self.fn, (self.x,), (t,))[1], v, self.x.shape, self.x.dtype)

    def backward(self, u: Tensor) -> Tensor:
        """J^T u, for columns (m, k)."""
        with plain_attention(), torch.enable_grad():
            pull = vjp(self.fn, self.x)[1]
        return self._columns(lambda t: pull(t)[0], u, self.shape, self.dtype)

    def full(self) -> tuple[Tensor, Tensor, Tensor]:
        m, n = self.sides
        eye = torch.eye(self.least, dtype=torch.float64, device=self.x.device)
        if m <= n:
            v, s, uh = torch.linalg.svd(self.backward(eye), full_matrices=False)
            return uh.mT, s, v
        u, s, vh = torch.linalg.svd(self.forward(eye), full_matrices=False)
        return u, s, vh.mT

    def _columns(self, product, block: Tensor, shape, dtype) -> Tensor:
        self.passes += block.shape[1]
        rows = block.mT.to(dtype).reshape(-1, *shape)
        try:
            with plain_attention():
                out = vmap(product, chunk_size=self.chunk_size)(rows)
        except (RuntimeError, NotImplementedError) as error:
            raise RuntimeError(
                f'the Jacobian of fn cannot be computed: {str(error).splitlines()[0][:300]}; fn must not '
                f'draw random numbers or change tensors from outside in place (model.eval()), and have operations with '
                f'forward derivatives alone'
            ) from error
        columns = out.reshape(len(rows), -1).mT.double()
        if not bool(torch.isfinite(columns.sum())):
            raise ValueError('the Jacobian must be finite, got NaN or inf; look at fn(x) and its gradient')
        return columns
