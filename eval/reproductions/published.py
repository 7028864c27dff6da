"""The five studies: what each published, its settings, and our recipe for the same images; no torch here.

Both recipes of a cell have the same network, unless the cell is about networks, and see the same number of
images: the same number of network evaluations. The studies do not name their networks: rows of
`training/networks/rows.py` replace them. Settings that a study does not name have the defaults of the
training entry point.
"""

from collections.abc import Mapping
from dataclasses import replace

from trilemma.eval.reproductions.cells import DATA, Arm, Cell, Published, Study, fid
from trilemma.eval.studies.questions import Flags
from trilemma.training import families

STUDENTS = "figures of a student report, not published elsewhere; a +- is over repeated trainings"


def _preset(family: str, name: str) -> int:
    """Images that a training of this preset sees."""
    options = families.family(family).presets[name].options
    return options["max_train_steps"] * options["train_batch_size"]


def _v(preset: str, **flags: str) -> Flags:
    """Our recipe for any images: that of the preset `mnist-cpu`, with the settings that the data need."""
    own = families.family("unconditional").presets["mnist-cpu"].options
    names = ("ddpm_beta_schedule", "prediction_type", "lr_scheduler", "ema_max_decay")
    return {"preset": preset, **{name: str(own[name]) for name in names}, "train_batch_size": "64", **flags}


def _trained(arm: Arm, data: str, family: str = "unconditional", **changes) -> Arm:
    return replace(arm, name=f"{data}-{arm.name}", family=family, **changes)


_LINEAR = {"ddpm_num_steps": "1000", "ddpm_beta_schedule": "linear", "train_batch_size": "128"}
_MNIST_DDPM = Arm("ddpm", {**_LINEAR, "learning_rate": "2e-5", "lr_scheduler": "multistep"}, 1000,
                  milestones=(20 / 60, 40 / 60))  # fmt: skip
_CIFAR_DDPM = replace(_MNIST_DDPM, milestones=(30 / 90, 60 / 90))
_OURS = {
    data: Arm("ours", _v(preset, **flags), 20, sampler="dpmsolver++", warmup=100)
    for data, preset, flags in (
        ("mnist", "mnist-cpu", {"learning_rate": "2e-3"}),
        ("fashion_mnist", "fashion-mnist", {"learning_rate": "2e-3"}),
        ("cifar10", "cifar10", {"learning_rate": "1e-3"}),
        ("stanford_cars", "stanford-cars-128", {"learning_rate": "2e-4", "train_batch_size": "16"}),
    )
}
_EPOCHS = {"mnist": 60 * DATA["mnist"].images, "cifar10": 90 * DATA["cifar10"].images}


def _guided(data: str, theirs: Arm, values: Mapping[float, float]) -> list[Cell]:
    """Guidance w of the paper is diffusers' scale 1 + w."""
    cells = []
    for w, value in values.items():
        score = {"guidance_scale": f"{1 + w:g}"}
        study = _trained(theirs, f"{data}-guided", "class_conditional", score=score)
        study = replace(study, flags={**theirs.flags, "p_uncond": "0.2"})
        ours = _trained(_OURS[data], f"{data}-guided", "class_conditional", score=score)
        cells.append(Cell(f"{data}-guidance-{w:g}", data, fid(value), _EPOCHS[data], study, ours))
    return cells


def _ddpm(data: str, theirs: Arm, distance: Published, loss: float) -> list[Cell]:
    study, ours = _trained(theirs, data), _trained(_OURS[data], data)
    published = Published(f"loss {loss:g}", loss)
    return [
        Cell(f"{data}-ddpm", data, distance, _EPOCHS[data], study, ours, process=True),
        Cell(f"{data}-loss", data, published, _EPOCHS[data], study, measure="loss"),
    ]


def _elbo(data: str, theirs: Arm, widths: str, latent: str, preset: str) -> list[Cell]:
    """Both families' bounds on test images, and their distances; the study names no learning rate for its
    VAE."""
    learned = {"loss_type": "hybrid"}
    study = _trained(theirs, f"{data}-bound", flags={**theirs.flags, **learned})
    ours = _trained(_OURS[data], f"{data}-bound", flags={**_OURS[data].flags, **learned})
    own = {"vae_channels": widths, "latent_dim": latent, "train_batch_size": "128"}
    vae = Arm(f"{data}-vae-study", own, 1, "vae", None, ())
    better = {"preset": preset, **own, "train_batch_size": "64", "beta": "1"}
    pairs = {"ddpm": (study, ours), "vae": (vae, replace(vae, name=f"{data}-vae-ours", flags=better))}
    return [
        Cell(f"{data}-{name}-{what}", data, Published(), _EPOCHS[data], *pair, measure, bound=True)
        for what, measure in (("elbo", "bpd"), ("distance", "fd"))
        for name, pair in pairs.items()
    ]


def _schedules(data: str, *epochs: int) -> list[Cell]:
    """Linear, cosine and Huber, with samples of these epochs, the last of which is the end.

    The study's learning rate is not known, so the toolkit's default is used.
    """
    rows = {
        "linear": {},
        "cosine": {"ddpm_beta_schedule": "squaredcos_cap_v2"},
        "huber": {"loss_type": "huber"},
    }
    ours = _trained(_OURS[data], data)
    batch = {"train_batch_size": ours.flags["train_batch_size"]}
    return [
        Cell(f"{data}-{name}", data, Published(), epochs[-1] * DATA[data].images,
             Arm(f"{data}-{name}", {**_LINEAR, **batch, **row}, 1000), ours, epochs=epochs)
        for name, row in rows.items()
    ]  # fmt: skip


_PLANES = {"classes": "airplane", "resolution": "16", "random_flip": "true"}
_PLANE_NETS = ("unet_16", "unet_16")
_PLANES_OURS = Arm(
    "planes-ours", {"preset": "airplanes-16-cpu", **_PLANES, "train_batch_size": "64"}, 20,
    sampler="dpmsolver++", nets=_PLANE_NETS, warmup=100,
)  # fmt: skip
_PLANES_IMAGES = _preset("unconditional", "airplanes-16-cpu")


def _levels(steps: int) -> list[Cell]:
    """T noise levels and T calls for an image.

    The betas are scaled by 1000 / T: otherwise x_T still shows the image if T < 1000, and the run is refused.
    """
    own = {"ddpm_num_steps": str(steps), "train_batch_size": "64"}
    arm = Arm(f"planes-T{steps}", _PLANES | own, steps, nets=_PLANE_NETS)
    seen = "noise" if steps < 500 else Published.text
    cells = [
        Cell(f"planes-T{steps}", "cifar10", Published(seen), _PLANES_IMAGES, arm, _PLANES_OURS,
             length_known=False)
    ]  # fmt: skip
    if steps == 1000:
        timed = Published("90 s for ten images", 90.0, calls=steps)
        cells.append(replace(cells[0], name="planes-seconds-for-ten", published=timed, measure="seconds"))
    return cells


def _vdm(steps: int) -> Cell:
    """Class-conditional VDM, trained for this many steps; its eleventh label means no class."""
    nets = ("vdm_28_small", "vdm_cifar10")
    study = Arm("vdm", {"class_conditional": "true", "train_batch_size": "128"}, 1000, "vdm", None, nets)
    rate = {"learning_rate": "2e-3", "lr_scheduler": "cosine", "gamma": "monotone", "fourier_features": "6 7"}
    ours = replace(study, name="vdm-ours", flags={**study.flags, **rate})
    return Cell(f"vdm-{steps}", "cifar10", Published(), 128 * steps, study, ours, "bpd", bound=True)


def _gan(steps: int) -> Cell:
    study = Arm(f"gan-T{steps}", {**_PLANES, "ddpm_num_steps": str(steps), "train_batch_size": "64"}, steps,
                "ddgan", None, _PLANE_NETS)  # fmt: skip
    better = {"preset": "cifar10-16", **study.flags}
    seen = Published("black images" if steps == 8 else Published.text)
    ours = replace(study, name=f"gan-T{steps}-ours", flags=better)
    return Cell(f"gan-T{steps}", "cifar10", seen, _PLANES_IMAGES, study, ours, length_known=False)


def _swirl() -> Cell:
    """The study's chain of K of T steps, against a VDM's ancestral chain with the same number of calls."""
    images, points = _preset("vdm", "swirl-shortcut"), {"train_batch_size": "256"}
    study = Arm("swirl-shortcut", {"preset": "swirl-shortcut", **points}, 10, "vdm", "shortcut")
    ours = Arm("swirl-vdm", {"preset": "swirl", **points}, 10, "vdm", "ancestral")
    return Cell("swirl-shortcut", "swirl", Published(), images, study, ours, "energy", length_known=False)


_IMAGES_OF_NETS = 50 * DATA["cifar10"].images
_NETS = {"learning_rate": "1e-3", "train_batch_size": "64"}


def _architecture(name: str, **flags: str) -> Cell:
    net = flags.pop("net", "resnet_attention")
    study = Arm(f"cifar10-{name}", {**_NETS, **flags}, 1000, nets=(net, net))
    ours = replace(_OURS["cifar10"], name="cifar10-nets-ours", nets=("resnet_attention",) * 2)
    return Cell(f"cifar10-{name}", "cifar10", Published(), _IMAGES_OF_NETS, study, ours)


def _cited(name: str, value: float, n: int = 50_000) -> Cell:
    return Cell(f"cited-{name}", "cifar10", fid(value, n=n), why="figure of another paper, cited for scale")


STUDIES = {
    "guidance": Study(
        "DDPM and classifier-free guidance on MNIST and CIFAR-10", STUDENTS,
        (
            *_ddpm("mnist", _MNIST_DDPM, fid(6.06, 0.70), 0.0175),
            *_ddpm("cifar10", _CIFAR_DDPM, fid(49.5, 2.6), 0.0336),
            *_guided("mnist", _MNIST_DDPM, {0: 5.56, 0.5: 7.27, 1: 9.74}),
            *_guided("cifar10", _CIFAR_DDPM, {0: 47.18, 0.5: 42.73, 1: 39.52}),
        ),
    ),
    "bounds": Study(
        "DDPM against VAE: the bound on test images", STUDENTS,
        (
            *_elbo("mnist", _MNIST_DDPM, "16 32 32", "32", "mnist-cpu"),
            *_elbo("cifar10", _CIFAR_DDPM, "128 256 256 256", "256", "cifar10"),
        ),
    ),
    "schedules": Study(
        "Linear against cosine, and Huber's loss", STUDENTS,
        (
            *_schedules("mnist", 5, 9, 12), *_schedules("fashion_mnist", 5, 9, 12),
            *_schedules("stanford_cars", 27, 63, 69),
        ),
    ),
    "steps": Study(
        "How many noise levels: T 20 to 2,000, VDM, GAN, shortcut chain",
        STUDENTS + "; shortcut chain: Y. Huang 2022 (shortcut MCMC)",
        (
            *(cell for steps in (20, 100, 500, 1000, 2000) for cell in _levels(steps)),
            *(_vdm(steps) for steps in (500, 2000, 50_000)),
            _gan(4), _gan(8), _swirl(),
        ),
        "The betas of the airplanes are scaled by 1000 / T, which the study does not say: otherwise x_T "
        "would still show the image where T < 1000, and such a training is refused. A step of "
        "`swirl-shortcut` runs through a chain, so the study's recipe calls the network 11 times in a step "
        "where ours calls it once.",
    ),
    "networks": Study(
        "Networks, losses, transfer, and a distance on 128 samples",
        STUDENTS + "; cited: score SDE (Song et al. 2021, arXiv 2011.13456), BigGAN (Brock et al. 2019, "
        "arXiv 1809.11096), EDM (Karras et al. 2022, arXiv 2206.00364)",
        (
            *(_architecture(net, net=net) for net in ("simple", "conv", "resnet_attention")),
            *(_architecture(loss, loss_type=loss) for loss in ("vlb", "mmd")),
            replace(
                _architecture("resnet_attention"), name="cifar10-128-samples", samples=128,
                published=Published("FID below 1 (n 128), where 50,000 samples give about 50"),
            ),
            Cell("cifar100-to-cifar10", "cifar10", Published(),
                 why="it needs CIFAR-100 and two trainings, one after the other: docs/comparing.md, "
                 "Fine-tuning, has the commands"),
            _cited("score-sde", 2.20), _cited("biggan", 14.73), _cited("edm", 1.97),
        ),
        "A distance on 128 samples is worth little. The study's is plain and so depends on the number of "
        "samples: compare the plain values of real images for n 128 and for more. The covariance of 128 "
        "samples has 127 directions, while Inception has 2,048 features: in all others the distance sees "
        "nothing of the model.",
    ),
}  # fmt: skip
