"""Whose work a model rests on: data sets with their licences (a row each) and shared citations."""

from collections.abc import Collection
from typing import NamedTuple

from trilemma.eval.features.judge_files import read_trained, shipped_judge


class DataSet(NamedTuple):
    """A data set: name, makers, the licence that they state, and the shipped judge that knows its images."""

    name: str
    makers: str
    licence: str
    judge: str | None = None


UNKNOWN = DataSet("unknown", "unknown", "unknown")
NO_LICENCE = "none stated by its makers"

DATA = {
    "digits": DataSet(
        "Optical Recognition of Handwritten Digits, test set, 8x8 (as in scikit-learn)",
        "E. Alpaydin and C. Kaynak 1998, UCI Machine Learning Repository",
        "CC BY 4.0",
        judge="digits",
    ),
    "swirl": DataSet("Swirl, points of the plane made by this toolkit", "the Trilemma authors", "Apache-2.0"),
    "mixture": DataSet(
        "Mixture of five Gaussians, points of the plane made by this toolkit",
        "the Trilemma authors",
        "Apache-2.0",
    ),
    "ylecun/mnist": DataSet("MNIST", "Y. LeCun, C. Cortes and C. J. C. Burges 1998", "CC BY-SA 3.0", "mnist"),
    "zalando-datasets/fashion_mnist": DataSet(
        "Fashion-MNIST", "H. Xiao, K. Rasul and R. Vollgraf 2017, arXiv 1708.07747", "MIT"
    ),
    "uoft-cs/cifar10": DataSet(
        "CIFAR-10",
        "A. Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
        NO_LICENCE,
        "cifar10",
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


def credit_of(source: str | None, local: bool, fingerprints: Collection[str]) -> DataSet:
    """The credits of data with this Hub id; of a local folder, only if its images are a known data set's.

    fingerprints: of the images that results of the model were measured against.
    """
    if not local:
        return DATA.get(source, UNKNOWN)
    for credit in DATA.values():
        judge = credit.judge and read_trained(shipped_judge(credit.judge))
        if judge and not {judge.data_fingerprint, *judge.other_fingerprints}.isdisjoint(fingerprints):
            return credit
    return UNKNOWN


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
