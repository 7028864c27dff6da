"""Train a class-conditional diffusion model for classifier-free guidance:
`accelerate launch training/train_class_conditional.py`.

Without flags it learns the embedded 8x8 digits with their labels in a few minutes on two CPU cores. The
result is a folder that `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads.
"""

from trilemma.training.entry import main

if __name__ == "__main__":
    main("class_conditional", __doc__)
