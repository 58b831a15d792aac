"""Networks that the benchmark trains, as Flax NNX modules behind one seam.

network     what the benchmark knows of a network: how to start it and how to apply it
adapter     a network from an NNX module
stages      a network as a chain of named stages, which can be cut
inputs      from what a data set holds to what a network computes on
mlp         a multilayer perceptron
convnet     a small convolutional network
resnet      ResNet-18 and ResNet-50
transformer blocks shared by CLIP and ViT
clip        CLIP: an image tower and a text tower
vit         a vision transformer
linear      a linear head on given features
conv        convolution as a matrix product, where that is faster
norm        normalisation layers by name, BatchNorm live or frozen
registry    networks by name, from the files in `entries` and from other packages
"""
