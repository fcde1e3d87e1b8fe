"""The networks of the zoo and the modules that define their cards."""

import importlib

from experiments.lecture.zoo.card import Card

# The module that defines a network's card, in the chart's order.
NETWORKS = {
    "rbf": "readouts",
    "rnn": "recurrent",
    "lstm": "recurrent",
    "gru": "recurrent",
    "autoencoder": "autoencoders",
    "variational": "variational",
    "denoising": "autoencoders",
    "sparse": "autoencoders",
    "markov_chain": "markov",
    "hopfield": "hopfield",
    "boltzmann": "energy",
    "restricted_boltzmann": "restricted",
    "deep_belief": "deep_belief",
    "deconvolutional": "deconvolutional",
    "inverse_graphics": "inverse_graphics",
    "liquid_state": "reservoirs",
    "extreme_learning": "readouts",
    "echo_state": "reservoirs",
    "kohonen": "maps",
    "support_vector": "margins",
    "attention": "attention",
}


def cards() -> dict[str, Card]:
    """The cards of all networks by name, in the chart's order."""
    modules = {name: importlib.import_module(f"experiments.lecture.zoo.{module}") for name, module in NETWORKS.items()}
    found = {card.name: card for module in modules.values() for card in module.CARDS}
    return {name: found[name] for name in NETWORKS}
