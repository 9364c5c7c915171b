"""Many pipelines of which some need what others made, several at a time: what ablations and sweeps run."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from esc_env.training.config import PipelineConfig
from esc_env.training.pipeline import run_pipeline

__all__ = ["Job", "point", "run_all"]

Job = tuple[PipelineConfig, Path]
"""What `run_pipeline` is called with."""


def point(link: Path, there: Path) -> None:
    """Have a run begin with what another one made, through a link."""
    if not link.is_symlink():
        link.symlink_to(there.resolve())


def run_all(plans: Sequence[Iterator[list[Job]]], jobs: int, told: Callable[[str], None]) -> None:
    """Run every plan: each of its lists needs what the one before it made.

    Args:
        plans: one for each training seed; with several jobs, none waits for another one's.
        jobs: how many pipelines run at the same time, each in a process of its own, at least 1.
        told: told one line about what happens; with several jobs each process prints its own lines.
    """
    if jobs == 1:
        for config, place in (job for plan in plans for batch in plan for job in batch):
            told(str(place))
            run_pipeline(config, place, told=told)
        return
    # Ctrl-C goes to the workers too, and ends them without a word: every stage can be killed and gone on with.
    quiet: dict[str, Any] = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_DFL)}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), **quiet) as pool:
        running = {plan: _submit(pool, plan) for plan in plans}
        try:
            while any(running.values()):
                ended, _ = wait([job for batch in running.values() for job in batch], return_when=FIRST_COMPLETED)
                for job in ended:
                    job.result()
                for plan, batch in running.items():
                    running[plan] = [job for job in batch if job not in ended]
                    if batch and not running[plan]:
                        running[plan] = _submit(pool, plan)
        except BaseException:  # Ctrl-C too: without this, leaving the pool waits for all that is still to be run
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _submit(pool: Executor, plan: Iterator[list[Job]]) -> list[Future[None]]:
    """Hand in what a plan has next; nothing at its end."""
    return [pool.submit(_run, config, place) for config, place in next(filter(None, plan), [])]


def _run(config: PipelineConfig, place: Path) -> None:
    run_pipeline(config, place, told=lambda line: print(f"{place.parent.name}, {place.name}: {line}", flush=True))
