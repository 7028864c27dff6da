"""What a card says of a denoising-diffusion GAN."""

from trilemma.model_cards.rendering.snippets import PROCESS, seeded
from trilemma.model_cards.wording import Wording

DDGAN = """@inproceedings{xiao2022tackling,
  title = {Tackling the Generative Learning Trilemma with Denoising Diffusion {GANs}},
  author = {Zhisheng Xiao and Karsten Kreis and Arash Vahdat},
  booktitle = {International Conference on Learning Representations},
  year = {2022},
  note = {arXiv:2112.07804}
}"""

WORDING = Wording("denoising-diffusion GAN", {"ddgan": DDGAN}, seeded, PROCESS)
