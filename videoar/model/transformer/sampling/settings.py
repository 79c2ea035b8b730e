"""How bits are drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from videoar.model.transformer.sampling.guidance import APG, guidance_schedule
from videoar.model.transformer.schemes import Block


@dataclass(frozen=True)
class SamplerSettings:
    """How bits are drawn.

    Raises:
        ValueError: see `guidance_schedule`; or a temperature is not finite and above 0; or the
            interval of guidance is not inside of 0 to 1.
    """

    guidance: str | float = "t2v"
    """`ucf`, `t2v` or a constant; 1 is the conditional model without guidance."""
    temperature: float | Sequence[float] = 1.0
    """Divides the log-odds of every bit; one for all scales, or one per scale."""
    greedy: bool = False
    """Take the likelier value of every bit."""
    cached: bool = True
    """False recomputes the whole prefix in every pass: the slow reference."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """First and last position of a scale in the frame, from 0 to 1, that is guided; others have
    strength 1. Source: arXiv 2404.07724 (there an interval of noise levels)."""
    apg: APG | None = None
    """Adaptive projected guidance, in place of the plain difference."""

    def __post_init__(self) -> None:
        guidance_schedule(self.guidance)
        for temperature in self._temperatures():
            if not 0 < temperature < math.inf:
                hint = "greedy=True takes the likelier values"
                raise ValueError(f"temperature {temperature} is not finite and above 0 ({hint})")
        first, last = self.guidance_interval
        if not 0 <= first <= last <= 1:
            raise ValueError(f"guidance_interval {first}, {last} is not inside of 0 to 1")

    def _temperatures(self) -> Sequence[float]:
        return [self.temperature] if isinstance(self.temperature, int | float) else self.temperature

    def temperatures(self, num_scales: int) -> Sequence[float]:
        """Return the temperature of each scale.

        Raises:
            ValueError: there are as many temperatures as another number of scales.
        """
        if isinstance(self.temperature, int | float):
            return [self.temperature] * num_scales
        if len(self.temperature) != num_scales:
            raise ValueError(f"{len(self.temperature)} temperatures for {num_scales} scales")
        return self.temperature

    def strengths(self, blocks: Sequence[Block]) -> list[float]:
        """Return the strength of guidance of each block of a clip."""
        schedule, last = guidance_schedule(self.guidance), blocks[-1]
        first_guided, last_guided = self.guidance_interval
        strengths = []
        for block in blocks:  # the position on an axis of length 1 is 0
            frame, scale = block.frame / max(last.frame, 1), block.scale / max(last.scale, 1)
            is_guided = first_guided <= scale <= last_guided
            strengths.append(schedule(frame, scale) if is_guided else 1.0)
        return strengths
