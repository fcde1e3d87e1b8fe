"""The card of a network: its description, its experiment and its findings."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.lecture.zoo.drawing import Diagram

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Findings(NamedTuple):
    """The findings over all seeds of a network: a short text, the content of summary.json, and a figure."""

    text: str
    numbers: dict[str, Any]
    baseline: dict[str, Any]  # Comparison values for `numbers`, under the same names.
    figure: "Figure"
    caption: str
    versus: str = "baseline"  # A short name of the baseline.


def rounded(values, digits: int = 5) -> Any:
    """Converts an array to nested lists of rounded numbers, for the JSON results of a card's `run`."""
    return np.round(np.asarray(values, np.float64), digits).tolist()


@dataclasses.dataclass(frozen=True)
class Card:
    """One network.

    Attributes:
      name: Key in summary.json and value of --only.
      title: Name on the page, as in the chart.
      diagram: Cells and connections.
      idea: Two sentences for students.
      formula: LaTeX, see lesson.formula.
      rule: The learning rule, in one sentence.
      reference: Author, year and title.
      run: Trains the network with a given seed; returns JSON-serializable results.
      report: Computes the findings from the results of all seeds, at least one.
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
