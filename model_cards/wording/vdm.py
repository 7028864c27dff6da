"""What a card says of a variational diffusion model."""

from trilemma.model_cards.rendering.snippets import GUIDED, seeded
from trilemma.model_cards.wording import Wording

VDM = """@inproceedings{kingma2021variational,
  title = {Variational Diffusion Models},
  author = {Diederik P. Kingma and Tim Salimans and Ben Poole and Jonathan Ho},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2021},
  note = {arXiv:2107.00630}
}"""

WORDING = Wording("variational diffusion model", {"vdm": VDM}, seeded, GUIDED)
