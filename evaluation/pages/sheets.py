"""Many things on pages of bounded size, one after another: where each stands, and where keys lead from there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from esc_env.evaluation.pages.rendering import render

__all__ = ["Links", "Sheets"]

PAGE, MOST = 1_000_000, 100
"""Bytes of things, and things, on a page that opens at once. Ours."""


@dataclass(frozen=True, slots=True)
class Links:
    """Where the keys of a thing lead: the one before, the one after, the next that is wanted; None for nowhere."""

    previous: str | None
    next: str | None
    wanted: str | None


@dataclass(frozen=True, slots=True)
class Sheets:
    """Which things stand on which page.

    Attributes:
        name: what the pages' names begin with: `report` for `report-0001.html`.
        places: of each page.
    """

    name: str
    places: Sequence[range]

    @classmethod
    def of(cls, name: str, sizes: Iterable[int]) -> Sheets:
        """As many things on a page as there is room for, by their bytes; one that is longer has a page of its own."""
        places: list[range] = []
        begin = end = full = 0
        for end, size in enumerate(sizes, 1):
            if end - 1 > begin and (full + size > PAGE or end - 1 - begin == MOST):
                places.append(range(begin, end - 1))
                begin, full = end - 1, 0
            full += size
        return cls(name, [*places, range(begin, end)] if end else [])

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of each thing: `report-0001.html#c17`."""
        return tuple(
            f"{self._page(page)}#{self.anchor(place)}" for page, places in enumerate(self.places) for place in places
        )

    def anchor(self, place: int) -> str:
        """The id of a thing's article."""
        return f"c{place + 1}"

    def rendered(
        self, template: str, shown: Callable[[int], Any], wanted: Sequence[bool], only: str | None = None, **values: Any
    ) -> Iterator[tuple[str, str]]:
        """The name and the HTML of each page.

        Args:
            template: that extends `sheet.html`.
            shown: makes of a place what the template shows of it.
            wanted: of each thing, whether the key to the next one leads there.
            only: the name of the one page that is wanted; None for all.
            values: what else the template shows.
        """
        addresses, links = self.addresses, self._links(wanted)
        for page, places in enumerate(self.places):
            if only in (None, self._page(page)):
                first = places[0]
                begin = Links(None, addresses[first], addresses[first] if wanted[first] else links[first].wanted)
                html = render(
                    template,
                    shown=[(self.anchor(place), shown(place), links[place]) for place in places],
                    begin=begin,
                    first=first + 1,
                    last=places[-1] + 1,
                    total=self.places[-1][-1] + 1,
                    earlier=self._page(page - 1) if page else None,
                    later=self._page(page + 1) if page + 1 < len(self.places) else None,
                    **values,
                )
                yield self._page(page), html

    def _links(self, wanted: Sequence[bool]) -> list[Links]:
        """Where the keys lead from each thing, over the borders of pages."""
        addresses = self.addresses
        links: list[Links] = []
        later = next_wanted = None
        for place in reversed(range(len(addresses))):
            links.append(Links(addresses[place - 1] if place else None, later, next_wanted))
            later = addresses[place]
            next_wanted = later if wanted[place] else next_wanted
        return links[::-1]

    def _page(self, page: int) -> str:
        return f"{self.name}-{page + 1:04}.html"
