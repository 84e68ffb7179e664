"""What every section of a configuration has in common."""

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic_core import PydanticCustomError

from fastflow.training.randomness import SEEDS


class Section(BaseModel):
    """A section refuses unknown keys and never changes once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _countable(cls, value):
        if isinstance(value, int) and value > SEEDS:  # noise is keyed by 32 bits of seed and of step
            raise PydanticCustomError("too_large", f"Input should be at most {SEEDS}")
        return value
