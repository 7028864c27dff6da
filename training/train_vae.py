"""Train a variational autoencoder, the baseline in likelihood: `accelerate launch training/train_vae.py`.

Without flags it learns the embedded 8x8 digits in a few minutes on one CPU core. The result is a folder that
`DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads.
"""

from trilemma.training.entry import main

if __name__ == "__main__":
    main("vae", __doc__)
