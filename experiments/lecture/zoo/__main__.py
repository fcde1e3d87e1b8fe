"""Trains the networks of the zoo and writes its page: python -m experiments.lecture.zoo --workdir=W

    W/zoo.html      the chart, in which each network expands to its card
    W/summary.json  the numbers, also printed as the last line of standard output
    W/pieces/*.json the results of each network and seed, reused when the command is repeated
    W/figures/*.png one figure per network

--only trains only some networks; the page shows all networks that were trained in the folder with these seeds.
"""

import contextlib
import dataclasses
import json
import time

from experiments.cli import app
from experiments.cli.options import option
from experiments.lecture.zoo.networks import NETWORKS, cards


@dataclasses.dataclass(frozen=True)
class ZooConfig:
    """The neural-network zoo"""

    workdir: str = option(None, "Folder of the zoo. Repeat the command to resume.", needed="the folder", path=True)
    only: tuple[str, ...] = option((), f"Comma-separated networks to train; default: all of {', '.join(NETWORKS)}.")
    seeds: int = option(1, "Number of random seeds, starting at 0, over which results are averaged.", "[1, 100]")


def train(topic, card) -> None:
    """Trains a network with all seeds that have no cached result."""

    def timed(seed: int) -> dict:
        began = time.perf_counter()
        result = card.run(seed)
        return {"result": result, "seconds": time.perf_counter() - began}

    for seed in topic.seeds:
        topic.cached(f"{card.name}_seed{seed}", lambda seed=seed: timed(seed))


def shown(topic, card):
    """The card of a network, with its findings if it was trained with all seeds."""
    from experiments.lecture.zoo.page import Shown

    names = [f"{card.name}_seed{seed}" for seed in topic.seeds]
    if not all((topic.workdir.path / "pieces" / f"{name}.json").exists() for name in names):
        return Shown(card)
    pieces = [topic.cached(name, dict) for name in names]
    findings = card.report([piece["result"] for piece in pieces])
    topic.figure(card.name, findings.figure, title=card.title, caption=findings.caption)
    return Shown(
        card,
        findings.text,
        findings.numbers,
        findings.baseline,
        findings.caption,
        topic.workdir.path / "figures" / f"{card.name}.png",
        round(sum(piece["seconds"] for piece in pieces), 1),
        findings.versus,
    )


def main(config: ZooConfig) -> int:
    for name in config.only:
        app.require(name in NETWORKS, f"--only={name}: must be one of {', '.join(NETWORKS)}")
    from experiments.cli.compilation_cache import start_cache
    from experiments.lecture.topic import Topic, resumable
    from experiments.lecture.zoo.page import page
    from train.messages import say
    from train.workdir import Workdir, WorkdirError, write_atomically

    began = time.perf_counter()
    with contextlib.closing(Workdir(config.workdir)) as workdir, resumable(workdir):
        stored = workdir.read_json("options.json") or {"experiment": "zoo"}
        if stored.get("experiment") != "zoo" or (workdir.path / "run.json").exists():
            raise WorkdirError(f"{workdir.path} was created with another command; use a new --workdir")
        start_cache()
        topic = Topic(workdir, {"seeds": config.seeds}, "zoo")
        everything = cards()
        for name in config.only or everything:
            train(topic, everything[name])
        networks = [shown(topic, card) for card in everything.values()]
        write_atomically(workdir.path / "zoo.html", page(networks, config.seeds))
        numbers = {
            each.card.name: {
                "numbers": each.numbers,
                "baseline": each.baseline,
                "versus": each.versus,
                "seconds": each.seconds,
            }
            for each in networks
            if each.image
        }
        found = {"networks": numbers, "page": str(workdir.path / "zoo.html"), "workdir": str(workdir.path)}
        workdir.write_json("summary.json", found)
        say(f"page: {workdir.path / 'zoo.html'}; {time.perf_counter() - began:.0f} s")
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    app.run(main, ZooConfig)
