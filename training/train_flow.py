"""Train a flow, the straight path from noise to images: `accelerate launch training/train_flow.py`.

Without flags it learns the embedded 8x8 digits in a few minutes on two CPU cores. The result is a folder that
a stock `DDPMPipeline.from_pretrained` loads; with --class_conditional, one that
`DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads.
"""

from trilemma.training.entry import main

if __name__ == "__main__":
    main("flow", __doc__)
