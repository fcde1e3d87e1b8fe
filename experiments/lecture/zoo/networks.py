"""The networks of the zoo and the modules that define their cards."""

import importlib

from experiments.lecture.zoo.card import Card

# The module that defines each network's card, in the order of the chart.
NETWORKS = {
    "perceptron": "feed_forward",
    "feed_forward": "feed_forward",
    "rbf": "readouts",
    "deep_feed_forward": "depth",
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
    "deep_convolutional": "depth",
    "deconvolutional": "deconvolutional",
    "inverse_graphics": "inverse_graphics",
    "gan": "gan",
    "liquid_state": "reservoirs",
    "extreme_learning": "readouts",
    "echo_state": "reservoirs",
    "deep_residual": "depth",
    "kohonen": "maps",
    "support_vector": "margins",
    "neural_turing": "memory",
    "attention": "attention",
}


def cards() -> dict[str, Card]:
    """The cards of all networks by name, in the order of the chart."""
    modules = {name: importlib.import_module(f"experiments.lecture.zoo.{module}") for name, module in NETWORKS.items()}
    found = {card.name: card for module in modules.values() for card in module.CARDS}
    return {name: found[name] for name in NETWORKS}
