"""Whose work a model rests on: data sets with their licences, papers to cite. A new one is a row."""

from typing import NamedTuple


class DataSet(NamedTuple):
    """What is known of a data set: its name, its makers, the licence they state."""

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
"""Hub id, or the name of embedded data -> what is known."""

PAPERS = {
    "ddpm": """@inproceedings{ho2020denoising,
  title = {Denoising Diffusion Probabilistic Models},
  author = {Jonathan Ho and Ajay Jain and Pieter Abbeel},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2020},
  note = {arXiv:2006.11239}
}""",
    "guidance": """@misc{ho2022classifierfree,
  title = {Classifier-Free Diffusion Guidance},
  author = {Jonathan Ho and Tim Salimans},
  year = {2022},
  note = {arXiv:2207.12598}
}""",
    "ddgan": """@inproceedings{xiao2022tackling,
  title = {Tackling the Generative Learning Trilemma with Denoising Diffusion {GANs}},
  author = {Zhisheng Xiao and Karsten Kreis and Arash Vahdat},
  booktitle = {International Conference on Learning Representations},
  year = {2022},
  note = {arXiv:2112.07804}
}""",
    "vdm": """@inproceedings{kingma2021variational,
  title = {Variational Diffusion Models},
  author = {Diederik P. Kingma and Tim Salimans and Ben Poole and Jonathan Ho},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2021},
  note = {arXiv:2107.00630}
}""",
    "vae": """@inproceedings{kingma2014autoencoding,
  title = {Auto-Encoding Variational {Bayes}},
  author = {Diederik P. Kingma and Max Welling},
  booktitle = {International Conference on Learning Representations},
  year = {2014},
  note = {arXiv:1312.6114}
}""",
    "trilemma": """@software{trilemma,
  title = {Trilemma: train, measure and publish pixel-space diffusion models},
  author = {{The Trilemma authors}},
  license = {Apache-2.0}
}""",
}
"""BibTeX of each method, and of this toolkit."""
