"""The report of a fit: gathered once, and written again when there are likelihoods to hold the flow's against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wprox.app.html.facts import Facts
from wprox.app.html.page import report_page

MOST_GENERATED = 10_000  # rows that are drawn for it
MOST_LATENTS = 2_000  # held-out rows that are taken to their latent points


@dataclass
class Report:
    """What a report is made of.

    Attributes:
        facts: about generated rows.
        metrics: what metrics.json holds, which likelihoods are added to.
        taken: how each column was taken, in words, by its name.
        gathering: seconds that gathering the facts took.
    """

    facts: Facts
    metrics: Mapping[str, Any]
    taken: Mapping[str, str]
    gathering: float

    def page(self) -> str:
        """The page, with the likelihoods that there are."""
        said = self.metrics
        return report_page(self.facts, said["data"], self.taken, said["held_out"], self._spent(), said.get("selection"))

    def numbers(self) -> dict[str, Any]:
        """What metrics.json says of the tests; nothing of those that could not be made."""
        facts = self.facts
        found: dict[str, Any] = {"two_sample": facts.two_sample, "train_on_synthetic": facts.utility}
        numbers = {
            name: value._asdict() for name, value in found.items() if value is not None and type(value) is not str
        }
        if "train_on_synthetic" in numbers:
            numbers["train_on_synthetic"]["target"] = facts.target
        return numbers

    def _spent(self) -> list[tuple[str, float]]:
        blocks = [(f"training: {_stage(entry['block'])}", entry["seconds"]) for entry in self.metrics["blocks"]]
        if self.metrics.get("selection"):
            blocks = [("choosing and training", self.metrics["selection"]["seconds"])]
        others = [(f"for comparison: {r['model']}", r["seconds"]) for r in self.metrics["held_out"] if "seconds" in r]
        return [
            ("reading the table", self.metrics["data"]["seconds"]),
            *blocks,
            ("comparing generated with real rows", self.gathering),
            *others,
        ]


def _stage(block: int | str) -> str:
    return block if isinstance(block, str) else f"block {block}"
