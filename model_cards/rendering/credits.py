"""Whose work a model rests on: data sets with their licences (a row each) and shared citations."""

from typing import NamedTuple


class DataSet(NamedTuple):
    """A data set: its name, its makers, the licence that they state."""

    name: str
    makers: str
    licence: str


UNKNOWN = DataSet("unknown", "unknown", "unknown")
NO_LICENCE = "none stated by its makers"

DATA = {
    "digits": DataSet(
        "Optical Recognition of Handwritten Digits, test set, 8x8 (as in scikit-learn)",
        "E. Alpaydin and C. Kaynak 1998, UCI Machine Learning Repository",
        "CC BY 4.0",
    ),
    "swirl": DataSet("Swirl, points of the plane made by this toolkit", "the Trilemma authors", "Apache-2.0"),
    "mixture": DataSet(
        "Mixture of five Gaussians, points of the plane made by this toolkit",
        "the Trilemma authors",
        "Apache-2.0",
    ),
    "ylecun/mnist": DataSet("MNIST", "Y. LeCun, C. Cortes and C. J. C. Burges 1998", "CC BY-SA 3.0"),
    "zalando-datasets/fashion_mnist": DataSet(
        "Fashion-MNIST", "H. Xiao, K. Rasul and R. Vollgraf 2017, arXiv 1708.07747", "MIT"
    ),
    "uoft-cs/cifar10": DataSet(
        "CIFAR-10", "A. Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images", NO_LICENCE
    ),
    "uoft-cs/cifar100": DataSet(
        "CIFAR-100", "A. Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images", NO_LICENCE
    ),
    "tanganke/stanford_cars": DataSet(
        "Stanford Cars", "J. Krause, M. Stark, J. Deng and L. Fei-Fei 2013", NO_LICENCE
    ),
    "benjamin-paine/imagenet-1k-64x64": DataSet(
        "ImageNet-1k at 64x64",
        "O. Russakovsky et al. 2015, arXiv 1409.0575",
        "ImageNet's terms of access: non-commercial research",
    ),
}
"""Hub id, or the name of embedded data -> its credits."""

DDPM = """@inproceedings{ho2020denoising,
  title = {Denoising Diffusion Probabilistic Models},
  author = {Jonathan Ho and Ajay Jain and Pieter Abbeel},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2020},
  note = {arXiv:2006.11239}
}"""
"""Ho et al.: the paper of two families, whose own papers are in their files of `wording/`."""

TRILEMMA = """@software{trilemma,
  title = {Trilemma: train, measure and publish pixel-space diffusion models},
  author = {{The Trilemma authors}},
  license = {Apache-2.0}
}"""
"""This toolkit."""
