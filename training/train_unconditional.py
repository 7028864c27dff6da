"""Train an unconditional diffusion model: `accelerate launch training/train_unconditional.py`.

Without flags it learns the embedded 8x8 digits in a few minutes on two CPU cores. The result is a folder that
a stock `DDPMPipeline.from_pretrained` loads.
"""

from trilemma.training.entry import main

if __name__ == "__main__":
    main("unconditional", __doc__)
