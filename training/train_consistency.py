"""Train a consistency model, which draws an image in one, two or four calls of its network:
`accelerate launch training/train_consistency.py --init_from <folder of a diffusion model or flow>`.

Without flags it learns the embedded 8x8 digits from scratch. With --init_from it tunes a diffusion model
or a flow, which takes far fewer images. The result of a model without classes is a folder that a stock
`DDPMPipeline.from_pretrained` loads.
"""

from trilemma.training.entry import main

if __name__ == "__main__":
    main("consistency", __doc__)
