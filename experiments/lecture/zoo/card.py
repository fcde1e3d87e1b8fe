"""What the zoo says and measures about one network."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.lecture.zoo.drawing import Diagram

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Findings(NamedTuple):
    """What all seeds of a network found: one or two sentences, the content of summary.json, and a figure."""

    text: str
    numbers: dict[str, Any]
    baseline: dict[str, Any]  # What `numbers` are compared with, under equal names.
    figure: "Figure"
    caption: str
    versus: str = "baseline"  # What the baseline is, in a few words.


def rounded(values, digits: int = 5) -> Any:
    """An array as nested lists of rounded numbers, as a card's `run` returns them for JSON."""
    return np.round(np.asarray(values, np.float64), digits).tolist()


@dataclasses.dataclass(frozen=True)
class Card:
    """One network.

    Attributes:
      name: Key in summary.json and value of --only.
      title: Its name on the page, as in the chart.
      diagram: Its cells and connections.
      idea: Two sentences for students.
      formula: MathML.
      rule: The learning rule, in one sentence.
      reference: Author, year and title.
      run: Trains the network from a seed on; returns results as JSON has them.
      report: The findings from the results of all seeds, at least one.
      command: Another command that trains the network for longer; "" if there is none.
    """

    name: str
    title: str
    diagram: Diagram
    idea: str
    formula: str
    rule: str
    reference: str
    run: Callable[[int], dict[str, Any]]
    report: Callable[[list[dict[str, Any]]], Findings]
    command: str = ""
