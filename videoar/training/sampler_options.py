"""How samples are drawn, as options of stages, verbs and requests. Torch-free."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import AfterValidator, Field, FiniteFloat, ValidationError, field_validator

from videoar.core.errors import ConfigError
from videoar.core.types import Frozen
from videoar.model.transformer.config import GuidanceName

if TYPE_CHECKING:
    from videoar.model.transformer.sampling import SamplerSettings

_ALWAYS_RECORDED = {"guidance", "temperature"}
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Fraction = Annotated[float, Field(ge=0, le=1)]


def _check_order(interval: tuple[float, float]) -> tuple[float, float]:
    first, last = interval
    if first > last:
        raise ValueError(f"{first:g} is more than {last:g}")
    return interval


Guidance: TypeAlias = GuidanceName | FiniteFloat
Temperature: TypeAlias = _Positive | tuple[_Positive, ...]
GuidanceInterval: TypeAlias = Annotated[tuple[_Fraction, _Fraction], AfterValidator(_check_order)]


class ProjectedGuidance(Frozen):
    """Options of adaptive projected guidance, see `videoar.model.APG`."""

    eta: FiniteFloat = 0.0
    """Share of the part of the difference that is parallel to the conditional logits."""
    norm_threshold: float = Field(default=0.05, gt=0)
    """Longest difference, as root mean square."""


class SamplerOptions(Frozen):
    """How the bits of samples are drawn, see `videoar.model.SamplerSettings`."""

    guidance: Guidance = "t2v"
    """`ucf`, `t2v` or a constant strength; 1 is the model without guidance."""
    temperature: Temperature = 1.0
    """Of every bit, or a list with one per scale; below 1 the likelier value is drawn more."""
    greedy: bool = False
    """Take the likelier value of every bit."""
    guidance_interval: GuidanceInterval = (0.0, 1.0)
    """First and last scale that is guided, as position in the frame from 0 to 1."""
    apg: ProjectedGuidance | None = None
    """Adaptive projected guidance, in place of the plain difference."""

    @field_validator("apg", mode="before")
    @classmethod
    def _read_pair(cls, value: object) -> object:
        """Take eta and threshold as a pair, too."""
        if isinstance(value, list | tuple) and len(value) == 2:
            return dict(zip(ProjectedGuidance.model_fields, value, strict=True))
        return value

    @classmethod
    def of(cls, *sources: Mapping[str, Any]) -> "SamplerOptions":
        """Return the options that mappings name; later ones win, None and other keys are left out.

        Raises:
            ConfigError: an option cannot be used.
        """
        given = {
            name: value
            for source in sources
            for name, value in source.items()
            if name in SamplerOptions.model_fields and value is not None
        }
        try:
            return SamplerOptions.model_validate(given)
        except ValidationError as error:
            key = str(next(iter(error.errors()[0]["loc"]), "sampler"))
            # one message per alternative of a union
            messages = [e["msg"] for e in error.errors() if key in {"sampler", *e["loc"][:1]}]
            what = f"{given.get(key, '')}: {' or: '.join(messages)}"
            raise ConfigError(key, what) from error

    @property
    def recorded(self) -> dict[str, Any]:
        """What `sampler_json` of a sample says: guidance, temperature and what is no default."""
        chosen = self.model_dump(mode="json", include=set(SamplerOptions.model_fields))
        defaults = SamplerOptions().model_dump(mode="json")
        return {k: v for k, v in chosen.items() if k in _ALWAYS_RECORDED or v != defaults[k]}

    def settings(self) -> "SamplerSettings":
        """Return them as the sampler takes them."""
        from videoar.model.transformer.sampling import APG, SamplerSettings

        return SamplerSettings(
            self.guidance,
            self.temperature,
            self.greedy,
            guidance_interval=self.guidance_interval,
            apg=APG(**self.apg.model_dump()) if self.apg else None,
        )
