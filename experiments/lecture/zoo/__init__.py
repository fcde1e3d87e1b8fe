"""The neural-network zoo: every network of the Asimov Institute's chart (van Veen 2016, "The neural network zoo"),
trained with its own learning rule and compared with a baseline: python -m experiments.lecture.zoo --workdir=W

One module per family of networks defines their cards; `card.py` defines the card.
"""
