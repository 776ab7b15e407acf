"""Learning rate as a function of the step, in float64 on the host."""

import math
from collections.abc import Callable

import numpy as np


def learning_rates(
    kind: str,
    base: float,
    total: int,
    *,
    warmup: int = 0,
    warmup_start: float = 0.0,
    power: float = 0.9,
    final: float = 0.0,
    milestones: list[float] | None = None,
    gamma: float = 0.1,
    linear_total: float | None = None,
    hold: float = 0.0,
    ahead: int = 0,
) -> np.ndarray:
    """The learning rate of every step, float32, never negative.

    Args:
        kind: constant, linear, poly, cosine or step.
        base: the rate after warm-up.
        total: steps of the whole run.
        warmup: steps of linear warm-up, from ``warmup_start`` times the base rate.
        power: exponent of poly: (1 - progress)^power.
        final: lowest share of the base rate (linear, poly, cosine).
        milestones: shares of the run after which step multiplies by ``gamma``.
        linear_total: length of the linear fall in steps when it is not ``total``, e.g. a
            fraction where the last batch is partial.
        hold: steps that keep one rate, e.g. those of an epoch; 0 falls at every step.
        ahead: such periods that the fall is ahead of its time. With 1 the last period's rate is
            the final one, zero for poly: where published code steps its scheduler first.
    """
    falls: dict[str, Callable[[float], float]] = {
        "constant": lambda progress: 1.0,
        "linear": lambda progress: final + (1 - final) * (1 - progress),
        "poly": lambda progress: final + (1 - final) * max(0.0, 1 - progress) ** power,
        "cosine": lambda progress: final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2,
        "step": lambda progress: gamma ** sum(progress >= m for m in milestones or []),
    }
    length = linear_total if kind == "linear" and linear_total is not None else total
    rates = np.zeros(total)
    for step in range(total):
        if step < warmup:
            share = warmup_start + (1 - warmup_start) * (step + 1) / warmup
        else:
            done: float = step - warmup
            if hold:
                # Not held beyond rounding: 3 * (7 / 3) must count as 7.
                done = (math.floor(done / hold + 1e-9) + ahead) * hold
            share = falls[kind](min(1.0, done / max(1e-9, length - warmup)))
        rates[step] = max(0.0, base * share)
    return rates.astype(np.float32)
