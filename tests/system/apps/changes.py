"""The small federation, whose nodes are sent what changed of the model."""

from dataclasses import replace

import small

import koinon as kn

federation = replace(small.federation, strategy=kn.fedavg(downlink=kn.ErrorFeedback(kn.Quantize(4))), rounds=4)
population = small.population
