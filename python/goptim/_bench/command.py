"""The subcommand: selects what to measure, and prints and writes the results."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from goptim._bench import USUAL, conditions, contenders, pages, phase, steps, subjects, training

TRAINED = ("AdamW", "NAdam", "Adafactor")  # by default
PHASE_SHAPES = ("policy", "few", "tiny", "resnet50")  # by default


class Refused(Exception):
    """The arguments cannot be combined, or need something that is not installed."""


class Progress:
    """A progress bar on stderr if tqdm is installed, and lines on stdout."""

    def __init__(self, total: int) -> None:
        self.bar: Any = None
        if importlib.util.find_spec("tqdm"):
            self.bar = importlib.import_module("tqdm").tqdm(total=total, leave=False, disable=None)

    def begin(self, what: str) -> None:
        if self.bar is not None:
            self.bar.set_description(what)

    def advance(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def print(self, text: str) -> None:
        if self.bar is not None:
            self.bar.clear()
        print(text, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def run(options: argparse.Namespace) -> None:
    """Measure, and print, write and plot the results.

    Raises:
        Refused: before anything is measured.
    """
    if options.plot and not importlib.util.find_spec("matplotlib"):
        raise Refused("--plot needs matplotlib, which is not installed: pip install matplotlib")
    for page, mark in options.update:
        try:
            pages.find(page, mark)
        except ValueError as e:
            raise Refused(f"--update: {e}") from None
    before = torch.get_num_threads()
    try:
        (_train if options.training else _phase if options.phase else _step)(options)
    finally:
        torch.set_num_threads(before)


def _step(options: argparse.Namespace) -> None:
    options.against = options.against or list(USUAL)
    rows = _rows(options)
    bound, why = contenders.bound_library()
    lines = [_conditions(options), "", *pages.head(options.against, bound is not None)]
    report = Report(options, lines, [why] if why else [])

    def measure(row: steps.Row, advance: Callable[[], None]) -> str:
        rounds = steps.rounds_of(row.shapes, options.rounds)
        steps.measure(row, options.against, rounds, options.patience, report.watch, advance)
        return pages.line(row, options.against, bound is not None)

    total = sum(steps.rounds_of(row.shapes, options.rounds) for row in rows)
    done = report.measure(rows, total, measure, lambda row: row.title)
    report.notes += compile_times(done)
    spreads = [row.spread for row in done if row.spread is not None]
    report.end(done, max(row.threads for row in rows), spreads, lambda row: brief(row, done))
    if options.plot and done:
        from goptim._bench import plot

        plot.draw(
            options.plot,
            done,
            options.against,
            report.subtitle(),
            bool(options.shapes),
            bool(report.conditions["busy"]),
        )


def _rows(options: argparse.Namespace) -> list[steps.Row]:
    """The rows to measure, in order."""
    dtype = getattr(torch, options.dtype)
    names = options.optimizer or subjects.MEASURED
    if options.shapes and "Muon" in names and not all(shapes.matrices for shapes in options.shapes):
        if options.optimizer:
            raise Refused("Muon supports only matrices: --shapes matrices or small-matrices")
        names.remove("Muon")
    return [
        steps.Row(name, shapes.scaled(options.scale), threads, dtype)
        for name in names
        for shapes in options.shapes or subjects.default_shapes(name)
        for threads in options.threads or sorted({1, torch.get_num_threads()})
    ]


def _refuse(options: argparse.Namespace, mode: str, *names: str) -> None:
    for name in names:
        if getattr(options, name):
            raise Refused(f"--{name} cannot be used with {mode}")


def _phase(options: argparse.Namespace) -> None:
    _refuse(options, "--phase, which has its own implementations", "against", "plot")
    if options.dtype not in ("float32", "float64"):
        raise Refused("--phase supports float32 and float64")
    shapes = options.shapes or [subjects.SHAPES[name] for name in PHASE_SHAPES]
    rows = [
        phase.Row(name, some.scaled(options.scale), threads, getattr(torch, options.dtype))
        for name in options.optimizer or ["AdamW"]
        for some in shapes
        for threads in options.threads or sorted({1, torch.get_num_threads()})
    ]
    if any(row.optimizer == "Muon" and not row.shapes.matrices for row in rows):
        raise Refused("Muon supports only matrices: --shapes matrices or small-matrices")
    report = Report(options, [_conditions(options), "", *pages.phase_head()], [])

    def measure(row: phase.Row, advance: Callable[[], None]) -> str:
        phase.measure(row, steps.rounds_of(row.shapes, options.rounds), report.watch, advance)
        return pages.phase_line(row)

    total = sum(steps.rounds_of(row.shapes, options.rounds) for row in rows)
    done = report.measure(rows, total, measure, lambda row: row.title)
    report.end(done, max(row.threads for row in rows), [], lambda row: True)


def _train(options: argparse.Namespace) -> None:
    _refuse(options, "--training, which has its own models and implementations", "phase", "shapes", "against", "plot")
    names = options.optimizer or TRAINED
    if "Muon" in names:
        raise Refused("Muon supports only matrices, and the models of --training have other parameters")
    if options.dtype not in ("float32", "bfloat16"):
        raise Refused("--training supports float32 and bfloat16")
    rows = [
        training.Row(model, name, threads)
        for threads in options.threads or [torch.get_num_threads()]
        for model in training.MODELS
        for name in names
    ]

    report = Report(options, [_conditions(options), "", *pages.training_head()], [])

    def measure(row: training.Row, advance: Callable[[], None]) -> str:
        dtype = getattr(torch, options.dtype)
        training.measure(row, options.rounds, dtype, options.scale, report.watch, advance)
        return pages.training_line(row)

    total = sum(training.rounds_of(row.model, options.rounds) for row in rows)
    done = report.measure(rows, total, measure, lambda row: f"{row.model.title}, {row.optimizer}")
    report.end(done, max(row.threads for row in rows), [], lambda row: True)


class Report:
    """Prints and collects the rows of a run."""

    def __init__(self, options: argparse.Namespace, head: list[str], notes: list[str]) -> None:
        self.options, self.head, self.notes = options, head, notes
        self.conditions = conditions.conditions()
        self.watch = conditions.Watch()
        self.lines: list[str] = []
        self.interrupted = False

    def measure(
        self,
        rows: Sequence[Any],
        total: int,
        measure: Callable[[Any, Callable[[], None]], str],
        title: Callable[[Any], str],
    ) -> list[Any]:
        """Measure rows and print their lines. Return the measured rows; an interrupt ends the run early."""
        done = []
        progress = Progress(total)
        progress.print("\n".join(self.head))
        try:
            for row in rows:
                progress.begin(title(row))
                try:
                    line = measure(row, progress.advance)
                except (MemoryError, steps.TooSlow) as e:
                    self.notes.append(f"{title(row)}: not measured: {e}")
                    continue
                progress.print(line)
                self.lines.append(line)
                done.append(row)
        except KeyboardInterrupt:
            self.interrupted = True
            self.notes.append("interrupted: the rest was not measured")
        finally:
            progress.close()
        return done

    def end(self, rows: Sequence[Any], threads: int, spreads: Sequence[float], large: Callable[[Any], bool]) -> None:
        """Print the notes below the table, and write the requested files."""
        said = conditions.judged(self.watch, self.conditions, threads, spreads)
        notes = list(dict.fromkeys([*self.notes, *(note for row in rows for note in row.notes)]))
        print("\n" + "\n".join([said, *(f"- {note}" for note in notes)]), flush=True)
        for page, mark in [] if self.interrupted else self.options.update:
            lines = [
                line for line, row in zip(self.lines, rows, strict=True) if not mark.endswith("brief") or large(row)
            ]
            listed = ["", *(f"- {note}" for note in notes)] if notes and not mark.endswith("brief") else []
            pages.put(page, mark, "\n".join([*self.head, *lines, "", said, *listed]))
        if self.options.json:
            self._write(self.options.json, rows, notes)

    def _write(self, path: Path, rows: Sequence[Any], notes: list[str]) -> None:
        everything = {
            "measured": "training" if self.options.training else "phase" if self.options.phase else "steps",
            "conditions": self.conditions,
            "scale": self.options.scale,
            "patience": self.options.patience,
            "cpu_seconds": asdict(self.watch),
            "notes": notes,
            "rows": [row.json() for row in rows],
        }
        path.write_text(json.dumps(everything, indent=1) + "\n")

    def subtitle(self) -> str:
        found = self.conditions
        return f"{found['cpu']}, {found['cores']} cores, {found['torch_vectors']}; torch {found['torch']}"


def _conditions(options: argparse.Namespace) -> str:
    line = conditions.sentence(conditions.conditions(), getattr(torch, options.dtype))
    return line if options.scale == 1 else f"{line[:-1]}; all shapes scaled by {options.scale:g}."


def brief(row: steps.Row, rows: Sequence[steps.Row]) -> bool:
    """Whether a brief table has this row: the optimizer's first large shapes, on all threads."""
    first = next((other for other in rows if other.optimizer == row.optimizer and other.shapes.large), None)
    return first is not None and row.shapes == first.shapes and row.threads == max(other.threads for other in rows)


def compile_times(rows: Sequence[steps.Row]) -> list[str]:
    """A note with the compilation times, which the figures exclude."""
    times = [row.compile_seconds for row in rows if row.compile_seconds is not None]
    if not times:
        return []
    return [
        f"compile: compilation took up to {max(times):.1f} s per step, {sum(times):.1f} s in total; the figures above "
        "exclude it"
    ]
