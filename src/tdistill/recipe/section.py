"""Define what all sections of a recipe have in common."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tdistill.recipe.plain import find_unplain

MOST = 10_000_000  # of any count: above it memory or patience ends, and a typing error is likelier
Count = Annotated[int, Field(ge=1, le=MOST)]
CountOrZero = Annotated[int, Field(ge=0, le=MOST)]
Dtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]


class Section(BaseModel):
    """Refuse unknown keys, wrong types, and values that no recipe file can hold: NaN, infinity, integers beyond 64 bits, objects."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        found = find_unplain(value, numbers_only=True) if isinstance(value, dict) else None
        if found is not None:
            raise ValueError(f"{found.place or 'the section'} {found.problem}")
        return value


def get(section: Any, key: str, default: Any) -> Any:
    """Return a value of a section, or the default where it is missing or null. The section is a mapping, or was validated before."""
    found = section.get(key) if isinstance(section, Mapping) else getattr(section, key, None)
    return default if found is None else found


def filled(section: Any, **defaults: Any) -> Any:
    """Return a section with defaults for the keys that are missing or null. A value that is no section is returned unchanged."""
    if isinstance(section, BaseModel):
        section = {key: getattr(section, key) for key in section.model_fields_set}
    if not isinstance(section, Mapping):
        return section
    return {**section, **{key: default for key, default in defaults.items() if section.get(key) is None}}
