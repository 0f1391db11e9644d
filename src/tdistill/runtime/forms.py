"""Check that a value from a file has the types that its readers need, and name the place where it does not."""

import reprlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tdistill.runtime.errors import TdistillError
from tdistill.runtime.files import read_json

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Number = Annotated[float, Field(allow_inf_nan=True)]  # a diagnostic may be NaN
Name = Annotated[str, Field(min_length=1)]


class Form(BaseModel):
    """Declare the keys that a reader needs, with their types. Other keys are allowed, since a newer version may write more."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)


def check_form(value: Any, form: Any, where: str, error: type[TdistillError], advice: str = "") -> None:
    """Check a value that came from JSON.

    Args:
        value: what was read.
        form: a ``Form``, or any type that pydantic knows, such as ``dict[str, int]``.
        where: file, for the message.
        error: the class to raise.
        advice: what to do, the end of the message.

    Raises:
        error: a key is missing, or a value has another type or lies outside its range; its place is named.
    """
    try:
        TypeAdapter(form, config=None if _is_model(form) else ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
    except ValidationError as cause:
        first = cause.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part)[:60] for part in first["loc"])
        got = "" if first["type"] == "missing" else f", got {reprlib.repr(first['input'])}"
        raise error(f"{where}: {f'`{place}`: ' if place else ''}{first['msg']}{got}. {advice}".strip()) from None


def read_form(path: Path, form: Any, error: type[TdistillError], advice: str = "") -> Any:
    """Read a JSON file and check its form.

    Returns:
        The value of the file, as plain dictionaries and lists, with all its keys.

    Raises:
        error: the file is missing, can't be read, is not JSON, or has another form.
    """
    value = read_json(path, error, advice)
    check_form(value, form, str(path), error, advice)
    return value


def _is_model(form: Any) -> bool:
    return isinstance(form, type) and issubclass(form, BaseModel)
