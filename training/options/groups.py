"""The options that every family has, one frozen dataclass a group.

Names that diffusers' `train_unconditional.py` has keep their name and meaning (docs/recipes.md lists each).
The machinery is in `training/options/flags.py`; options and recipes of one family are in
`training/families/<family>.py`.
"""

from dataclasses import dataclass
from typing import Literal

from trilemma.training.images.shards.options import check_data
from trilemma.training.loop.learning_rate import POLYNOMIAL_END, SHAPES, USUAL_WARMUP, WITH_WARMUP
from trilemma.training.networks.rows import NETS
from trilemma.training.options.flags import PLUGIN, option
from trilemma.training.options.plugins import also
from trilemma.training.post_hoc import check_length


@dataclass(frozen=True)
class DataConfig:
    """Which images, and what is done to them before training."""

    dataset_name: str | None = option(
        None, "Hub data set id, or digits (8x8), or a set of points of training/images/points.py"
    )
    dataset_config_name: str | None = option(
        None, "configuration of the Hub data set", needs=("dataset_name", ...)
    )
    dataset_revision: str | None = option(
        None, "branch, tag or commit of the Hub data set", needs=("dataset_name", ...)
    )
    train_data_dir: str | None = option(
        None, "local image, parquet or Hub-format folder; replaces the Hub data set"
    )
    train_split: str = option("train", "split to train on")
    image_column: str | None = option(None, "image column; chosen by its type if not given")
    label_column: str | None = option(None, "label column, or 'none'; chosen by its type if not given")
    classes: tuple[str, ...] | None = option(None, "keep only these classes, by name or number")
    resolution: int | None = option(None, "side of the square images; the images' own if not given", low=1)
    channels: Literal[1, 3] | None = option(None, "grey (1) or RGB (3); the images' own if not given")
    center_crop: bool = option(
        True, "crop the centre; random crops are not offered because images are decoded once"
    )
    random_flip: bool = option(False, "flip images left to right at random")
    skip_bad_images: bool = option(False, "skip and count images that cannot be read, instead of stopping")
    max_train_images: int | None = option(None, "use only the first N rows", low=1)
    validation_split: str | None = option(
        None, "split of the held-out images; taken from the training split if not given",
        needs=("validation_size", ...),
    )  # fmt: skip
    validation_size: int | None = option(
        None, "images to hold out for the validation loss, 0 for none; if not given, all of "
        "--validation_split", usual=0, low=0,
    )  # fmt: skip
    preserve_input_precision: bool = option(False, "not offered: training and metrics use 8-bit images")
    cache_dir: str | None = option(None, "where decoded images are cached", free=True)
    dataloader_num_workers: int = option(
        0, "processes that read images; with --streaming, threads of one such process", free=True, low=0
    )
    streaming: bool = option(
        False, "read parquet or WebDataset shards while the model trains, never as a whole (docs/scaling.md)"
    )
    shuffle_buffer: int = option(
        10_000, "consecutive images of a stream that are shuffled together", low=1, needs=("streaming", ...)
    )
    stream_head: int = option(
        10_000, "first images of a stream, which stand for it: sizes, pictures, reference of evaluation",
        low=2, needs=("streaming", ...),
    )  # fmt: skip
    num_classes: int | None = option(
        None, "number of classes of a stream whose labels are plain integers 0, 1, ...", low=1,
        needs=("streaming", ...),
    )  # fmt: skip

    def __post_init__(self):
        check_data(self)
        if not self.center_crop:
            raise ValueError("--no-center_crop is not offered: images are cropped once, at the centre")
        if self.preserve_input_precision:
            raise ValueError("--preserve_input_precision is not offered: images have 8 bits")


@dataclass(frozen=True)
class NetConfig:
    """Which network."""

    net: str | None = option(
        None,
        "row of training/networks/rows.py; chosen by the resolution if not given",
        choices=lambda: tuple(NETS),
    )
    model_config_name_or_path: str | None = option(
        None, "folder, file or Hub id of a network configuration; replaces --net"
    )
    dropout: float | None = option(None, "dropout; the network's own if not given", low=(0, 1.0))
    enable_xformers_memory_efficient_attention: bool = option(
        False, "use xformers' attention; needs xformers"
    )


@dataclass(frozen=True)
class OptimConfig:
    """Batches, AdamW and the learning rate."""

    train_batch_size: int = option(128, "images per process and micro-batch", low=1)
    gradient_accumulation_steps: int = option(1, "micro-batches per optimizer step", low=1)
    eval_forward_batch: int | None = option(
        None, "images in one forward pass of the network in validation, sheets and evaluation; "
        "--train_batch_size if not given", free=True, low=1,
    )  # fmt: skip
    learning_rate: float = option(2e-4, "peak learning rate", low=0.0)
    lr_scheduler: Literal[tuple(SHAPES)] = option(
        "constant_with_warmup", "learning rate over optimizer steps"
    )
    lr_warmup_steps: int | None = option(
        None, "optimizer steps of warm-up; if not given, a tenth of a run of less than 10,000 steps",
        usual=USUAL_WARMUP, low=0, needs=("lr_scheduler", WITH_WARMUP),
    )  # fmt: skip
    lr_milestones: tuple[int, ...] | None = option(
        None, "optimizer steps at which the rate is multiplied by --lr_gamma",
        needs=("lr_scheduler", ("multistep",)),
    )  # fmt: skip
    lr_gamma: float = option(0.5, "factor at each milestone", low=0.0, needs=("lr_scheduler", ("multistep",)))
    adam_beta1: float = option(0.9, "Adam's first decay", low=(0, 1.0))
    adam_beta2: float = option(0.999, "Adam's second decay", low=(0, 1.0))
    adam_weight_decay: float = option(0.0, "decoupled weight decay", low=0)
    adam_epsilon: float = option(1e-8, "Adam's epsilon", low=0.0)
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0 for no clipping", low=0)

    @property
    def forward_batch(self) -> int:
        """Images in one forward pass without gradients: memory is then bounded by that of training."""
        return self.eval_forward_batch or self.train_batch_size

    def __post_init__(self):
        if (self.lr_scheduler == "multistep") != (self.lr_milestones is not None):
            raise ValueError("--lr_scheduler multistep and --lr_milestones go together; give both or neither")
        if self.lr_scheduler == "polynomial" and self.learning_rate <= POLYNOMIAL_END:
            raise ValueError(
                f"--learning_rate must be above {POLYNOMIAL_END:g}, where --lr_scheduler polynomial ends; "
                f"got {self.learning_rate:g}"
            )


@dataclass(frozen=True)
class EMAConfig:
    """The average of the weights that is published."""

    use_ema: bool = option(True, "publish an exponential moving average of the weights")
    ema_inv_gamma: float = option(1.0, "inverse gamma of the warm-up", low=0.0, needs=("use_ema", (True,)))
    ema_power: float = option(0.75, "power of the warm-up", low=0.0, needs=("use_ema", (True,)))
    ema_max_decay: float = option(0.9999, "largest decay", low=(0, 1), needs=("use_ema", (True,)))
    ema_halflife_images: float | None = option(
        None, "half-life in images, as EDM; replaces the power warm-up", low=0.0, needs=("use_ema", (True,))
    )
    ema_std: float | None = option(None, "length as a share of the run", low=0.0, needs=("use_ema", (True,)))
    ema_snapshot_steps: int = option(
        0, "steps between snapshots, for averages made later (docs/averages.md); 0: none", free=True, low=0
    )

    def __post_init__(self):
        check_length(self.ema_std, self.ema_halflife_images)


@dataclass(frozen=True)
class RunConfig:
    """Output folder, length, and how a run starts and resumes."""

    output_dir: str | None = option(
        None, "output folder; outputs/<family>-<preset or data> if not given", free=True
    )
    overwrite_output_dir: bool = option(
        False, "delete what an earlier run left in --output_dir and start over", free=True
    )
    seed: int = option(0, "seed of initial weights, data order and noise, below 2^32", low=0)
    num_epochs: int = option(100, "passes over the data, unless --max_train_steps is given", low=1)
    max_train_steps: int | None = option(None, "optimizer steps; replaces --num_epochs", low=1)
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "if not given, accelerate's own setting, or bf16 for DDPMs that gain from it", usual="no"
    )
    compile: bool | None = option(
        None, "compile the network; if not given, only DDPMs that train for hours on a CPU", usual=False
    )
    cpu_threads: int = option(
        0, "CPU threads of a process, whatever OMP_NUM_THREADS says; 0 for an equal share of the cores, "
        "or one for a small network",
        free=True, low=0,
    )  # fmt: skip
    profile: int = option(
        0, "steps whose time by part is printed, with a trace in profile.json; 0 for none", free=True, low=0
    )
    checkpointing_steps: int = option(1000, "optimizer steps between checkpoints", free=True, low=1)
    checkpoints_total_limit: int = option(2, "checkpoints to keep", free=True, low=1)
    resume_from_checkpoint: str = option("latest", "'latest', or the name or path of a checkpoint", free=True)
    init_from: str | None = option(
        None, "folder or Hub id whose weights to start from, with a fresh optimizer"
    )
    init_new_classes: bool = option(
        False, "allow classes that differ from those of --init_from, or no classes: re-initialise the class "
        "embedding, except for classes of the same names", needs=("init_from", ...),
    )  # fmt: skip
    plugin: tuple[str, ...] | None = option(None, PLUGIN)
    local_rank: int = option(-1, "set by some launchers; the LOCAL_RANK variable wins", free=True)

    def __post_init__(self):
        if self.seed >= 2**32:  # numpy takes no larger one
            raise ValueError(f"--seed must be less than 4294967296; got {self.seed}")


@dataclass(frozen=True)
class LogConfig:
    """What is logged, drawn and saved, and how often."""

    logger: str = option("tensorboard", "any tracker of accelerate, e.g. tensorboard or wandb", free=True)
    logging_dir: str = option("logs", "folder of the logs, under --output_dir", free=True)
    logging_steps: int = option(50, "optimizer steps between log lines", free=True, low=1)
    validation_steps: int = option(500, "optimizer steps between validation losses", free=True, low=1)
    sample_steps: int | None = option(
        None, "optimizer steps between sample sheets; at the end only if not given", free=True, low=1
    )
    save_images_epochs: int | None = option(None, "epochs between sample sheets", free=True, low=1)
    save_model_epochs: int | None = option(
        None, "epochs between saves of the pipeline; at the end only if not given", free=True, low=1
    )

    def __post_init__(self):
        if self.sample_steps and self.save_images_epochs:
            raise ValueError(
                "--sample_steps and --save_images_epochs both say when to draw samples; give one of them"
            )


@dataclass(frozen=True)
class SheetConfig:
    """How images are sampled during training: for sample sheets and for evaluation."""

    eval_batch_size: int = option(64, "images on a sample sheet", free=True, low=1)
    sampler: str | None = option(None, "sampler of sheets and of evaluation during training", free=True)
    ddpm_num_inference_steps: int | None = option(
        None, "steps of that sampler; its usual number if not given", free=True, low=1
    )


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation during training."""

    eval_steps: int | None = option(
        None, "optimizer steps between evaluations, with one more at the end; 0 for none", free=True, low=0
    )
    eval_num_samples: int = option(
        1000, "samples per evaluation", free=True, low=2, needs=("eval_steps", ...)
    )
    eval_mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "precision of the network while samples of an evaluation are drawn; float32 if not given",
        free=True, needs=("eval_steps", ...),
    )  # fmt: skip
    eval_feature_extractor: str | None = option(
        None, "inception, dinov2, clip, classifier, pixels; inception if its weights are here, else "
        "classifier", free=True, needs=("eval_steps", ...),
    )  # fmt: skip
    eval_judge: str | None = option(
        None, "classifier that comes with trilemma (cifar10, cifar10-16, digits, mnist), whatever the data; "
        "else the data's own", free=True, needs=("eval_steps", ...),
    )  # fmt: skip
    eval_metrics: tuple[str, ...] = option(
        ("fd",), lambda: (
            "of fd, energy, kid, cmmd, mind, is, prdc, clipped, class_accuracy, modes, memorization, copies, "
            "ct, fld, class_vendi, class_energy, diversity"
            f"{also('metric')} (docs/metrics.md); the first chooses the best model"
        ), free=True, needs=("eval_steps", ...),
    )  # fmt: skip


@dataclass(frozen=True)
class HubConfig:
    """Publishing."""

    allow_unevaluated: bool = option(
        False, "publish also without the results that --eval_steps asked for", free=True,
        needs=("push_to_hub", ...),
    )  # fmt: skip
    push_to_hub: bool = option(False, "publish the output folder to the Hub at the end", free=True)
    hub_token: str | None = option(
        None, "token; better: `hf auth login`", free=True, needs=("push_to_hub", ...)
    )
    hub_model_id: str | None = option(
        None, "user/name of the model; the output folder's name if not given", free=True,
        needs=("push_to_hub", ...),
    )  # fmt: skip
    hub_private_repo: bool = option(False, "make the model private", free=True, needs=("push_to_hub", ...))
    hub_create_pr: bool = option(
        False, "open a pull request instead of committing to main", free=True, needs=("push_to_hub", ...)
    )
    hub_tag: str | None = option(None, "name the pushed commit", free=True, needs=("push_to_hub", ...))

    def __post_init__(self):
        if self.hub_create_pr and self.hub_tag:
            raise ValueError("--hub_tag tags a commit of main, and --hub_create_pr makes no commit there")
