"""L-BFGS.

Its state is one for all parameters: gradients and steps of the past as vectors over all of them, in
the order of the parameters. A step calls the closure many times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from dptrain.core.arrays import as_array, namespace_of
from dptrain.core.grad_mode import enable_grad
from dptrain.core.tensor import Tensor, wrap
from dptrain.optim.checks import check_rate
from dptrain.optim.line_search import strong_wolfe
from dptrain.optim.optimizer import Optimizer, number
from dptrain.optim.runs import values_of


class LBFGS(Optimizer):
    """Limited-memory BFGS, as PyTorch computes it.

    One parameter group only. Source: Liu & Nocedal, "On the limited memory BFGS method for large scale
    optimization", 1989.

    Args:
        params: see `Optimizer`.
        lr: step length (the first one to try, with a line search).
        max_iter: most iterations of one `step`.
        max_eval: most evaluations of the closure in one `step`; 5/4 of `max_iter` if None.
        tolerance_grad: end where no element of the gradient is larger.
        tolerance_change: end where neither the loss nor a parameter changes by more.
        history_size: number of past steps to remember.
        line_search_fn: None or "strong_wolfe".

    Raises:
        ValueError: several parameter groups, or an option that has no meaning.
    """

    couples_parameters = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ) -> None:
        if max_eval is None:
            max_eval = max_iter * 5 // 4
        defaults = {
            "lr": lr,
            "max_iter": max_iter,
            "max_eval": max_eval,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
            "history_size": history_size,
            "line_search_fn": line_search_fn,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_rate(group)

    def _add_group(self, param_group: dict[str, Any]) -> None:
        if self.param_groups:
            raise ValueError("LBFGS doesn't support per-parameter options (parameter groups)")
        super()._add_group(param_group)

    def _state_shape(self, name: str, p: Tensor) -> tuple[int, ...] | None:
        return None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Go on by up to `max_iter` iterations.

        Args:
            closure: clears the gradients, computes the loss with gradients and returns it.

        Returns:
            The loss that `closure` returned first.

        Raises:
            TypeError: no closure.
            RuntimeError: an unknown line search.
        """
        if closure is None:
            raise TypeError(
                "LBFGS.step() missing 1 required positional argument: 'closure', a function that "
                "clears the gradients, computes the loss, calls backward and returns the loss"
            )
        search = self.param_groups[0]["line_search_fn"]
        if search not in (None, "strong_wolfe"):
            raise RuntimeError(
                f"only 'strong_wolfe' is supported, but got line_search_fn={search!r}"
            )
        with enable_grad():
            first_loss = closure()
        history = _History(self.state[self._params[0]])
        history.state["func_evals"] += 1
        grad = self._gradient()
        if abs(grad).max() > self.param_groups[0]["tolerance_grad"]:
            with np.errstate(all="ignore"):
                self._iterate(closure, float(first_loss), grad, history)
            history.save()
        return first_loss

    @property
    def _params(self) -> list[Tensor]:
        params: list[Tensor] = self.param_groups[0]["params"]
        return params

    def _iterate(
        self, closure: Callable[[], Any], loss: float, grad: np.ndarray, history: _History
    ) -> None:
        group, state = self.param_groups[0], history.state
        lr, smallest = number(group["lr"]), group["tolerance_change"]
        evaluations, iterations, optimal = 1, 0, False
        while iterations < group["max_iter"]:
            iterations += 1
            state["n_iter"] += 1
            d = history.direction(grad, group["history_size"])
            previous_loss = history.loss = loss
            t = lr
            if state["n_iter"] == 1:
                t = float(min(1.0, 1.0 / abs(grad).sum())) * lr
            slope = float(grad @ d)
            history.t = t
            if slope > -smallest:
                break
            more = 0
            if group["line_search_fn"] is not None:
                loss, grad, t, more = strong_wolfe(
                    partial(self._evaluate, closure, d),
                    t,
                    d,
                    loss,
                    grad,
                    slope,
                    max_ls=group["max_eval"] - evaluations,
                )
                history.t = t
                self._move(t, d)
            else:
                self._move(t, d)
                if iterations != group["max_iter"]:
                    loss, grad = self._loss_and_gradient(closure)
                    more = 1
            if more:
                optimal = abs(grad).max() <= group["tolerance_grad"]
            evaluations += more
            state["func_evals"] += more
            if (
                evaluations >= group["max_eval"]
                or optimal
                or abs(d * t).max() <= smallest
                or abs(loss - previous_loss) < smallest
            ):
                break

    # ---- all parameters as one vector --------------------------------------------------------------

    def _gradient(self) -> np.ndarray:
        return np.concatenate(
            [
                namespace_of(p._array).zeros(p._array.size, p._array.dtype)
                if p._grad is None
                else p._grad._array.reshape(-1)
                for p in self._params
            ]
        )

    def _move(self, t: float, d: np.ndarray) -> None:
        start = 0
        for p in self._params:
            part = d[start : start + p._array.size].reshape(p._array.shape)
            p._array += (part * p._array.dtype.type(t)).astype(p._array.dtype)
            p._bump_version()
            start += p._array.size

    def _loss_and_gradient(self, closure: Callable[[], Any]) -> tuple[float, np.ndarray]:
        with enable_grad():
            loss = float(closure())
        return loss, self._gradient()

    def _evaluate(
        self, closure: Callable[[], Any], d: np.ndarray, t: float
    ) -> tuple[float, np.ndarray]:
        """Loss and gradient at a step along `d`; the parameters are where they were afterwards."""
        before = [p._array.copy() for p in self._params]
        self._move(t, d)
        result = self._loss_and_gradient(closure)
        for p, values in zip(self._params, before, strict=True):
            np.copyto(p._array, values)
            p._bump_version()
        return result


class _History:
    """What is known of the curvature, read from the state of the first parameter and saved there."""

    def __init__(self, state: dict[str, Any]) -> None:
        state.setdefault("func_evals", 0)
        state.setdefault("n_iter", 0)
        self.state = state
        self.d = values_of(state.get("d"))
        self.t: Any = values_of(state.get("t"))
        self.dirs = [values_of(v) for v in state.get("old_dirs") or []]
        self.steps = [values_of(v) for v in state.get("old_stps") or []]
        self.ro = [values_of(v) for v in state.get("ro") or []]
        self.scale: Any = values_of(state.get("H_diag"))
        self.grad = values_of(state.get("prev_flat_grad"))
        self.loss: Any = state.get("prev_loss")
        self.al: list[Any] | None = None

    def direction(self, grad: np.ndarray, size: int) -> np.ndarray:
        """Minus the inverse Hessian times the gradient, as far as the past tells."""
        if self.state["n_iter"] == 1:
            self.dirs, self.steps, self.ro, self.scale = [], [], [], 1
            self.d = -grad
        else:
            self._remember(grad, size)
            q, al = -grad, [None] * len(self.dirs)
            for i in reversed(range(len(self.dirs))):
                al[i] = self.steps[i] @ q * self.ro[i]
                q -= self.dirs[i] * al[i]
            self.d = q * self.scale
            for i, a in enumerate(al):
                self.d += self.steps[i] * (a - self.dirs[i] @ self.d * self.ro[i])
            self.al = [*al, *[None] * (size - len(al))]
        self.grad = grad.copy()
        return self.d

    def _remember(self, grad: np.ndarray, size: int) -> None:
        y, s = grad - self.grad, self.d * self.d.dtype.type(self.t)
        ys = y @ s
        if ys > 1e-10:
            if len(self.dirs) == size:
                for past in (self.dirs, self.steps, self.ro):
                    past.pop(0)
            self.dirs.append(y)
            self.steps.append(s)
            self.ro.append(1 / ys)
            self.scale = ys / (y @ y)

    def save(self) -> None:
        """Put everything back into the state, in PyTorch's order and types."""
        if self.al is not None:
            self.state["al"] = [_tensor(a) for a in self.al]
        self.state.update(
            d=_tensor(self.d),
            t=self.t,
            old_dirs=[_tensor(v) for v in self.dirs],
            old_stps=[_tensor(v) for v in self.steps],
            ro=[_tensor(v) for v in self.ro],
            H_diag=self.scale if isinstance(self.scale, int) else _tensor(self.scale),
            prev_flat_grad=_tensor(self.grad),
            prev_loss=self.loss,
        )


def _tensor(value: Any) -> Any:
    return value if value is None else wrap(as_array(value))
