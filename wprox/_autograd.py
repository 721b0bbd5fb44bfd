"""Numbers whose gradients are computed along with them, and the derivatives of these by automatic differentiation.

A value that is found in blocks, by iterations or by a solver of its own is no graph to differentiate. Its gradient is
known all the same, often from the same pass; what is rarely wanted, derivatives of that gradient, comes from the same
value written once more in plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Needs = tuple[bool, ...]
SHIFT = 1e-3  # of points, relative to the farthest: whether a value that carries no gradient is a constant
HOW_CUT = "(is there a .detach(), .item(), float(...), NumPy or torch.no_grad() in it, or does it count or round?)"


class Function(torch.autograd.Function):
    """A function that `torch.func.grad` knows, and that says what to do where another transform of it is asked for."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        raise TypeError(NO_BATCHES)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise TypeError(
            "there are no forward-mode derivatives (torch.func.jvp, jacfwd, hessian) of sums over pairs and of "
            "transport costs; take torch.func.grad, or torch.autograd.grad(..., create_graph=True) for second ones"
        )


NO_BATCHES = (
    "torch.vmap (and what is made of it, as torch.func.jacrev) does not run through wprox, whose sizes and checks "
    "depend on numbers; go through the batch by a loop, as in torch.stack([F(wprox.Particles(x)) for x in batch])"
)


def is_batched(tensor: Tensor) -> bool:
    """Whether the tensor stands for a batch of them, inside of torch.vmap."""
    return bool(torch._C._functorch.is_batchedtensor(tensor))


def is_transformed() -> bool:
    """Whether a transform of torch.func is at work."""
    return torch._C._functorch.maybe_current_level() is not None


def needed(*inputs: Tensor) -> Needs:
    """Which of some tensors want a gradient, now."""
    return tuple(torch.is_grad_enabled() and tensor.requires_grad for tensor in inputs)


def with_gradients(
    compute: Callable[..., tuple[Tensor, list[Tensor | None]]], plain: Callable[..., Tensor], *inputs: Tensor
) -> Tensor:
    """A scalar f(inputs) whose gradients are computed along with it, and are themselves differentiable.

    Arguments:
        compute: of which gradients are needed, and the inputs: f, and these gradients.
        plain: f of the inputs, for derivatives of the gradients by automatic differentiation.
        inputs: tensors.
    """
    return _Value.apply(compute, plain, needed(*inputs), *inputs)[0]


def gradients_of(
    compute: Callable[..., Sequence[Tensor | None]], plain: Callable[..., Tensor], needs: Needs, *inputs: Tensor
) -> list[Tensor | None]:
    """The gradients of a scalar f(inputs), those that are needed, as `compute` of the inputs finds them.

    Where a graph is kept, their own derivatives are those of f in plain torch.
    """
    if not any(needs):
        return [None] * len(inputs)
    if not torch.is_grad_enabled():
        return list(compute(*inputs))
    found = iter(_Gradients.apply(compute, plain, needs, *inputs))
    return [next(found) if need else None for need in needs]


class _Value(Function):
    @staticmethod
    def forward(compute: Callable, plain: Callable, needs: Needs, *inputs: Tensor) -> tuple[Tensor, ...]:
        value, gradients = compute(needs, *inputs)
        like = inputs[0]
        kept = [g.to(x) for g, x, need in zip(gradients, inputs, needs, strict=True) if need and g is not None]
        return value.to(like), *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, ctx.plain, ctx.needs, *tensors = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:], *tensors)

    @staticmethod
    def backward(ctx: Any, slope: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        needs, plain, count = ctx.needs, ctx.plain, sum(ctx.needs)
        if slope is None:
            return (None,) * (3 + len(needs))

        def known(*tensors: Tensor) -> list[Tensor | None]:
            numbers = iter(tensors[:count])
            return [None] * count + [next(numbers).clone() if need else None for need in needs]

        def value(*tensors: Tensor) -> Tensor:
            return plain(*tensors[count:])

        gradients = gradients_of(known, value, (False,) * count + needs, *ctx.saved_tensors)[count:]
        return None, None, None, *(None if g is None else slope.to(g) * g for g in gradients)


class _Gradients(Function):
    @staticmethod
    def forward(compute: Callable, plain: Callable, needs: Needs, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(g for g, need in zip(compute(*inputs), needs, strict=True) if need and g is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, ctx.plain, ctx.needs, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        again, wanted = torch.is_grad_enabled(), ctx.needs_input_grad[3:]
        with torch.enable_grad():
            # new names for the inputs: where one of them is a function of another, no path is counted twice
            inputs = [
                tensor if not (want or need) else tensor.view_as(tensor) if again else tensor.detach().requires_grad_()
                for tensor, want, need in zip(ctx.saved_tensors, wanted, ctx.needs, strict=True)
            ]
            in_gradient = [tensor for tensor, need in zip(inputs, ctx.needs, strict=True) if need]
            gradients = torch.autograd.grad(ctx.plain(*inputs), in_gradient, create_graph=True, materialize_grads=True)
            total = sum((g * slope).sum() for g, slope in zip(gradients, slopes, strict=True) if slope is not None)
            if not (isinstance(total, Tensor) and total.requires_grad):
                return (None,) * (3 + len(inputs))
            found = torch.autograd.grad(
                total,
                [tensor for tensor, want in zip(inputs, wanted, strict=True) if want],
                create_graph=again,
                materialize_grads=True,
            )
        left = iter(found)
        return None, None, None, *(next(left) if want else None for want in wanted)


def run_again(f: Callable[..., Any], again: bool, *inputs: Any) -> Any:
    """f(*inputs); where `again`, it runs once more in the backward pass of a gradient in place of keeping the graph."""
    wanted = any(needed(*(value for value in inputs if isinstance(value, Tensor))))
    if again and wanted and not is_transformed():  # torch.func knows no checkpoints
        return checkpoint(f, *inputs, use_reentrant=False)
    return f(*inputs)


class _Once(Function):
    @staticmethod
    def forward(tensor: Tensor, sentence: str) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensor, ctx.sentence = inputs
        ctx.save_for_backward(tensor)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, None]:
        sentence = ctx.sentence

        def refuse(*inputs: Tensor) -> Tensor:
            raise NotImplementedError(sentence)

        same = gradients_of(lambda slope, _: [None, slope.clone()], refuse, (False, True), slope, *ctx.saved_tensors)
        return same[1], None


def differentiable_once(tensor: Tensor, sentence: str) -> Tensor:
    """The tensor itself; a derivative of its gradient is refused by a `NotImplementedError` that says the sentence."""
    return _Once.apply(tensor, sentence)


class _Nothing(Function):
    @staticmethod
    def forward(sentence: str, *inputs: Tensor) -> Tensor:
        return inputs[0].new_zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.sentence = inputs[0]

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[None, ...]:
        raise NotImplementedError(ctx.sentence)


def not_differentiable_in(tensor: Tensor, inputs: Sequence[Tensor], sentence: str) -> Tensor:
    """The tensor itself; its derivatives in some inputs are refused by a `NotImplementedError` with the sentence."""
    wanted = [value for value, need in zip(inputs, needed(*inputs), strict=True) if need]
    return tensor + _Nothing.apply(sentence, *wanted).to(tensor) if wanted else tensor


def uncut(f: Callable[[Tensor], Any], subject: object, part: str = "") -> Callable[[Tensor], Any]:
    """f, which raises `ValueError` where a gradient is wanted and its values vary but carry none.

    Infinite values do not count: an indicator is no such function.

    Arguments:
        f: maps points (n, d), or numbers (n,), to values.
        subject: what f belongs to, for the message.
        part: what it is of the subject, as in "the kernel ".
    """

    def watched(x: Tensor) -> Any:
        values = f(x)
        if not any(needed(x)) or not isinstance(values, Tensor) or values.requires_grad:
            return values
        with torch.no_grad():
            try:
                others = f(elsewhere(x.detach()))
            except (ValueError, RuntimeError):  # beside its domain
                return values
            gap = (others - values).abs()
            gap, sizes = (part[torch.isfinite(gap)] for part in (gap, values.abs()))
        rounding = torch.finfo(x.dtype).eps ** 0.5
        if len(gap) and float(gap.max()) > rounding * float(sizes.max()):
            raise ValueError(
                f"{part}{subject} is cut off from autograd: its values change by up to {float(gap.max()):.3g} when the "
                f"points move, but carry no gradient {HOW_CUT}; compute it with torch alone"
            )
        return values

    watched.__name__ = getattr(f, "__name__", type(f).__name__)
    return watched


def elsewhere(x: Tensor) -> Tensor:
    """Points (n, d) moved a little, or numbers (n,) changed by as small a part of them."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x)
    return x * (1 + SHIFT * noise) if x.ndim == 1 else x + SHIFT * (x.norm(dim=1).max() + 1) * noise
