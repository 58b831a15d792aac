"""Models that are kept: a run's network in a file of its own, from which any process builds it again.

A model is two files of one name: NAME.safetensors with what its run trained, and NAME.json with all that is needed to
build the network and to use it. Weights that no run trains, those of a pretrained network, are in one further file that
all models of a folder share; its name has their hash.
"""
