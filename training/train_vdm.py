"""Train a variational diffusion model, for the likelihood: `accelerate launch training/train_vdm.py`.

Without flags it learns the embedded 8x8 digits in about ten minutes on a busy CPU core. The result is a
folder that `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads.
"""

from trilemma.training.entry import main

if __name__ == "__main__":
    main("vdm", __doc__)
