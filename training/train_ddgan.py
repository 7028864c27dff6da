"""Train a denoising-diffusion GAN, for images in 2 to 8 steps: `accelerate launch training/train_ddgan.py`.

Without flags it learns the embedded 8x8 digits in about fifteen minutes on two CPU cores. The result is a
folder that `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads.
"""

from trilemma.training.entry import main

if __name__ == "__main__":
    main("ddgan", __doc__)
