"""A question that the lecture page asks before it shows a result; without imports, so that topics start quickly."""

from typing import NamedTuple


class Guess(NamedTuple):
    """A question whose answer is a measured number, asked before `figure` is shown. The slider goes from `low` to
    `high`, and further if the value of other flags lies outside."""

    figure: str
    question: str
    unit: str
    low: float
    high: float
    value: float
