"""Conversations of an env, kept as they end."""

from __future__ import annotations

from collections import Counter
from os import PathLike
from pathlib import Path
from typing import Any

from esc_env.errors import RecordError
from esc_env.gym.episode import Episode
from esc_env.protocols import Usage
from esc_env.records import RecordWriter

__all__ = ["Recorder"]


class Recorder:
    """Appends the conversations of one env, or of several, to a file of records, each with its scenario.

    A copy, or what is unpickled, opens the file anew: it carries no file.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._writer: RecordWriter | None = None
        self._times: Counter[str] = Counter()
        self._open: dict[int, tuple[Episode, Usage]] = {}
        self._append()

    def begin(self, episode: Episode | None, place: int = 0) -> None:
        """A new conversation of the env at this place; one that goes on there still is kept as cut off."""
        self.end(place)
        assert episode is not None  # it has been reset
        self._open[place] = (episode, episode.usage)

    def go_on(self, episode: Episode | None, place: int = 0) -> None:
        """The conversation at this place after one more step."""
        assert episode is not None  # it has been stepped
        _, usage = self._open[place]
        self._open[place] = (episode, usage + episode.usage)

    def end(self, place: int = 0) -> None:
        """Keep the conversation at this place, if there is one in which the supporter has been heard."""
        episode, usage = self._open.pop(place, (None, Usage()))
        if episode is None or not (episode.turn or episode.failure):
            return
        trial = self._times[episode.scenario.id]
        self._times[episode.scenario.id] += 1
        kept = episode.trajectory(trial, usage)
        self._append().write({**kept.to_json(), "scenario": episode.scenario.to_json()})

    def close(self) -> None:
        """Keep what goes on still, as cut off, and close the file. More than once is no error."""
        for place in sorted(self._open):
            self.end(place)
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _append(self) -> RecordWriter:
        if self._writer is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._writer = RecordWriter(self.path, "trajectory")
            except OSError as error:
                raise RecordError(f"{self.path}: cannot be written to ({error.strerror}). Give another file") from error
        return self._writer

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_writer": None}
