"""The blocks of a page: chapters of tables, pictures and sentences, for any subject.

A chapter is written as HTML and as Markdown by the templates beside this file, which know these forms and no others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from holdfast.report import plots
from holdfast.report.plots import Picture
from holdfast.report.table import Table
from holdfast.report.words.suspicion import Remark
from holdfast.stats.figures import CampaignSummary


@dataclass(frozen=True, kw_only=True)
class Key:
    """One line of a legend."""

    swatch: str
    label: str
    role: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture with its numbers and its caption."""

    form: ClassVar[str] = "figure"
    heading: str
    picture: Picture
    table: Table
    tag: str = ""
    text: str = ""
    legend: tuple[Key, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Small pictures, each of which labels its own lines or all of which share one legend."""

    form: ClassVar[str] = "gallery"
    text: str
    figures: tuple[Figure, ...]
    legend: tuple[Key, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Image:
    """A picture in a file beside the page."""

    form: ClassVar[str] = "image"
    alt: str
    file: str


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph."""

    form: ClassVar[str] = "text"
    text: str
    drawn: bool = False
    """whether it explains something drawn, which Markdown does not show"""


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """A list of sentences."""

    form: ClassVar[str] = "sentences"
    sentences: tuple[Remark, ...]
    tag: str = "suspicious"
    """what stands before a sentence that fires"""

    def __bool__(self) -> bool:
        return bool(self.sentences)


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A term and its value."""

    term: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A list of terms."""

    form: ClassVar[str] = "facts"
    facts: tuple[Fact, ...]


Block = Table | Figure | Gallery | Image | Text | Sentences | Facts


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """A heading and its blocks. A chapter is published only if the chapter is marked public."""

    key: str
    """its id on the page"""
    title: str
    blocks: tuple[Block | None, ...]
    """those that are empty or None are left out"""
    public: bool = False

    @property
    def shown(self) -> tuple[Block, ...]:
        """The blocks that are not empty."""
        return tuple(block for block in self.blocks if block)


def bullets(*texts: str) -> Sentences:
    """A list of sentences, none of which is marked as a warning."""
    return Sentences(sentences=tuple(Remark(text=text) for text in texts))


def legend(summary: CampaignSummary, name: str) -> tuple[Key, ...]:
    """The legend: the style of each model."""
    drawn = plots.styles(summary)
    return tuple(
        Key(swatch=plots.swatch(drawn[model.label], f"{name}-key{place}"), label=model.label, role=model.role)
        for place, model in enumerate(summary.models)
    )
