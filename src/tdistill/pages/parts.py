"""Hold what a page is made of as plain values: a document of sections, and the kinds of parts that a section lists."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tdistill.pages.svg import Plot
from tdistill.pages.tables import Table


@dataclass(frozen=True)
class Terms:
    """Hold terms with the text that explains each; a term with a colour gets a swatch of it."""

    texts: Mapping[str, str]  # term → text
    colours: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Notes:
    """Hold limits and warnings that a reader should know."""

    texts: Sequence[str]
    terminal: bool = False  # the terminal shows them too


@dataclass(frozen=True)
class Sample:
    """Hold one prompt and each system's answer."""

    prompt: str
    answers: Mapping[str, str]


@dataclass(frozen=True)
class Samples:
    """Hold prompts with their answers, side by side, each system under its colour."""

    samples: Sequence[Sample]
    colours: Mapping[str, str]


@dataclass(frozen=True)
class Details:
    """Hold a code block that is folded away until a reader opens it."""

    summary: str
    text: str
    language: str


Part = str | Table | Plot | Terms | Notes | Samples | Details  # a string is a paragraph


@dataclass(frozen=True)
class Section:
    """Hold a heading and the parts below it, in order; ``key`` is its anchor."""

    key: str
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Document:
    """Hold a whole page; a section without parts is left out."""

    title: str
    facts: Mapping[str, str]
    sections: Sequence[Section]

    @property
    def shown(self) -> list[Section]:
        """Return the sections that have something to show."""
        return [section for section in self.sections if section.parts]

    @property
    def plots(self) -> list[Plot]:
        """Return the figures, in order."""
        return [part for section in self.sections for part in section.parts if isinstance(part, Plot)]
