"""What holds for the pipelines of all families: one interface, one way to read a call, one shipped file."""

import importlib
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UNet2DModel,
)
from entry import environment

from trilemma import pipelines
from trilemma.model_cards.hub.bundle import check_standalone, save_bundle
from trilemma.pipelines import as_ours, shared
from trilemma.pipelines.class_conditional import ClassConditionalPipeline
from trilemma.pipelines.consistency import ConsistencyPipeline
from trilemma.pipelines.ddgan import DDGANPipeline
from trilemma.pipelines.flow import ClassConditionalFlowPipeline
from trilemma.pipelines.networks.plain_unet import PlainUNet2DModel
from trilemma.pipelines.networks.vae_model import VAEModel
from trilemma.pipelines.networks.vdm_model import VDMModel
from trilemma.pipelines.samplers import FLOW_SAMPLERS, SAMPLERS
from trilemma.pipelines.single_file import single_file
from trilemma.pipelines.unconditional import UnconditionalPipeline
from trilemma.pipelines.vae import VAEPipeline
from trilemma.pipelines.vdm import VDMPipeline
from trilemma.training import families
from trilemma.training.output_folder import OutputFolder

NAMES = ("zero", "one", "two")
FOLDER = Path(shared.__file__).parent
SIZES = {"sample_size": 8, "in_channels": 1}
UNET = {key: value for key, value in TINY.items() if key[0] != "_"} | SIZES | {"out_channels": 1}


def unconditional(scheduler=None):
    return UnconditionalPipeline(UNet2DModel(**UNET), scheduler or DDPMScheduler(40))


def class_conditional(scheduler=None):
    net = UNet2DModel(**UNET, num_class_embeds=4)
    return ClassConditionalPipeline(net, scheduler or DDIMScheduler(40), NAMES)


def ddgan(names=NAMES):
    net = UNet2DModel(**UNET, class_embed_type="identity", resnet_time_scale_shift="scale_shift")
    return DDGANPipeline(net, DDPMScheduler(4, prediction_type="sample"), names)


def consistency(names=NAMES):
    return ConsistencyPipeline(UNet2DModel(**UNET, num_class_embeds=names and 4), LCMScheduler(), names)


def vdm(names=NAMES):
    return VDMPipeline(VDMModel(TINY, num_class_embeds=names and 4, **SIZES), names)


def vae():
    return VAEPipeline(VAEModel(8, 1, 4, (8, 16)))


def flow():
    net = UNet2DModel(**UNET, num_class_embeds=4)
    return ClassConditionalFlowPipeline(net, FlowMatchEulerDiscreteScheduler(), NAMES)


def plain():
    """An unconditional model with a network that is not of diffusers."""
    torch.manual_seed(0)
    net = PlainUNet2DModel(8, 1, 1, ("DownBlock2D",), ("UpBlock2D",), (8,), 1, norm_num_groups=4)
    pipeline = UnconditionalPipeline(net.eval(), DDPMScheduler(5))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


FAMILIES = {
    "unconditional": unconditional, "class_conditional": class_conditional, "ddgan": ddgan, "vdm": vdm,
    "vae": vae, "consistency": consistency, "flow": flow,
}  # fmt: skip
WITH_CLASSES = ("class_conditional", "consistency", "ddgan", "vdm", "flow")


def test_every_family_is_tested_here():
    assert set(FAMILIES) == set(families.names())


def make(family):
    torch.manual_seed(0)
    pipeline = FAMILIES[family]()
    pipeline.network.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call(pipeline, **options):
    steps = dict.fromkeys(("unconditional", "class_conditional", "vdm", "flow"), 5).get(pipeline.family)
    return pipeline(num_inference_steps=steps, output_type="pt", **options).images


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_size_alone_is_the_number_of_images(family):
    pipeline = make(family)
    assert call(pipeline, batch_size=3).shape == (3, 1, 8, 8)
    assert call(pipeline).shape == (1, 1, 8, 8)
    torch.testing.assert_close(call(pipeline, batch_size=2, seeds=[4, 5]), call(pipeline, seeds=[4, 5]))
    with pytest.raises(ValueError, match="seeds must be 3 ints"):
        call(pipeline, batch_size=3, seeds=[4, 5])
    if family in WITH_CLASSES:
        named = call(pipeline, batch_size=2, class_labels="two", seeds=[4, 5])
        torch.testing.assert_close(named, call(pipeline, class_labels=["two"] * 2, seeds=[4, 5]))


@pytest.mark.parametrize(
    ("family", "sampler", "samplers", "steps", "calls", "guidance"),
    [
        ("unconditional", "ddpm", tuple(SAMPLERS), 40, 40, None),
        ("class_conditional", "ddim", tuple(SAMPLERS), 40, 40, 1.0),
        ("consistency", "lcm", ("lcm",), 2, 2, None),
        ("ddgan", "ddpm", ("ddpm",), 4, 4, None),
        ("vdm", "ancestral", ("ancestral", "shortcut"), 250, 250, 1.0),
        ("vae", "decoder", ("decoder",), 1, 1, None),
        ("flow", "euler", tuple(FLOW_SAMPLERS), 50, 50, 1.0),
    ],
)
def test_the_interface_of_every_family(family, sampler, samplers, steps, calls, guidance):
    pipeline = make(family)
    assert (pipeline.family, pipeline.sampler, pipeline.samplers()) == (family, sampler, samplers)
    assert pipeline.class_names == (NAMES if family in WITH_CLASSES else None)
    assert pipeline.default_guidance == guidance
    assert pipeline.network in pipeline.components.values()
    assert pipeline.steps(None) == pipeline.steps(steps) == steps
    assert (pipeline.calls(steps, False), pipeline.calls(steps, True)) == (calls, 2 * calls)
    for name in samplers:
        other = pipeline.with_sampler(name)
        assert (type(other), other.sampler) == (type(pipeline), name)
        assert other.network is pipeline.network
    assert pipeline.sampler == sampler
    with pytest.raises(ValueError, match=rf"^--sampler must be one of {samplers[0]}.*; got 'dimm'"):
        pipeline.with_sampler("dimm")
    for wrong in (0, True, float(steps)):
        with pytest.raises(ValueError, match=rf"^--num_inference_steps must be .*; got {wrong}"):
            pipeline.steps(wrong)


def test_models_without_classes_cannot_be_guided():
    assert (vdm(None).default_guidance, vdm(None).class_names, ddgan(None).class_names) == (None, None, None)


def test_a_sampler_is_offered_to_models_that_it_can_sample():
    assert "euler_ancestral" not in unconditional(DDPMScheduler(40, prediction_type="sample")).samplers()


@pytest.mark.parametrize("scheduler", [PNDMScheduler(), DPMSolverMultistepScheduler(solver_order=3)])
def test_a_scheduler_of_no_row_is_called_by_its_class(scheduler):
    pipeline = unconditional(scheduler)
    assert pipeline.sampler == type(scheduler).__name__
    assert pipeline.with_sampler(pipeline.sampler).scheduler is scheduler
    assert pipeline.with_sampler("ddim").sampler == "ddim"


@pytest.mark.parametrize(
    ("total", "scheduler", "steps"),
    [
        (1000, DDIMScheduler, 50),
        (70, DDIMScheduler, 35),
        (10, DDIMScheduler, 10),
        (70, DDPMScheduler, 70),
    ],
)
def test_usual_steps(total, scheduler, steps):
    assert unconditional(scheduler(total)).steps(None) == steps


@pytest.mark.parametrize("family", WITH_CLASSES)
@pytest.mark.parametrize(
    "labels",
    [
        ["one", "two"],
        [1, 2],
        (1, np.int64(2)),
        np.array([1, 2]),
        torch.tensor([1, 2]),
        {"one": 0, 2: 0}.keys(),
        [torch.tensor(1), "two"],
    ],
)
def test_labels_may_come_in_any_form(family, labels):
    expected = call(make(family), class_labels=["one", "two"], seeds=[0, 1])
    assert torch.allclose(call(make(family), class_labels=labels, seeds=[0, 1]), expected, atol=1e-5)


@pytest.mark.parametrize("family", WITH_CLASSES)
@pytest.mark.parametrize("label", ["one", 1, np.int64(1), torch.tensor(1), np.array(1)])
def test_one_label_is_for_all_images_and_a_list_says_how_many(family, label):
    pipeline = make(family)
    expected = call(pipeline, class_labels=["one", "one"], seeds=[0, 1])
    assert torch.allclose(call(pipeline, class_labels=label, seeds=[0, 1]), expected, atol=1e-5)
    generator = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    by_generator = call(pipeline, class_labels=[label, label], generator=generator)
    assert torch.allclose(by_generator, expected, atol=1e-5)
    assert len(call(pipeline, class_labels=label, batch_size=3)) == 3


@pytest.mark.parametrize("family", WITH_CLASSES)
@pytest.mark.parametrize(
    ("label", "shown"),
    [
        (True, "True"),
        (np.True_, "True"),
        (torch.tensor(True), "True"),
        (1.0, "1.0"),
        (np.float64(1), "1.0"),
        (torch.tensor(1.0), "1.0"),
        (3, "3"),
        (-1, "-1"),
        ("three", "'three'"),
        ("1", "'1'"),
        ([1], r"\[1\]"),
    ],
)
def test_what_is_no_label_is_refused_with_the_choices(family, label, shown):
    pipeline = make(family)
    message = rf"^class_labels\[1\] must be one of 0 'zero', 1 'one', 2 'two', or None; got {shown}"
    with pytest.raises(ValueError, match=message):
        call(pipeline, class_labels=[None, label])
    if not isinstance(label, list):
        with pytest.raises(ValueError, match=message.replace(r"\[1\] must", " must")):
            call(pipeline, class_labels=label)


@pytest.mark.parametrize("family", WITH_CLASSES)
def test_labels_by_name_are_no_labels(family):
    """The keys of a dictionary would be read as labels, and its values be ignored."""
    with pytest.raises(ValueError, match=r"class_labels must be .* a sequence of labels; got \{'one': 2\}"):
        call(make(family), class_labels={"one": 2})


@pytest.mark.parametrize("family", WITH_CLASSES)
def test_a_number_of_labels_that_does_not_fit(family):
    with pytest.raises(ValueError, match="one for all images, or one for each of 2 images; got 3"):
        call(make(family), class_labels=[0, 1, 2], batch_size=2)


def test_an_image_of_random_class_is_the_same_beside_images_of_given_classes():
    pipeline = make("ddgan")
    alone = [call(pipeline, class_labels=[label], seeds=[seed]) for label, seed in ((None, 5), ("two", 6))]
    together = call(pipeline, class_labels=[None, "two"], seeds=[5, 6])
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_of_images_and_seeds_are_read_in_one_way(family):
    pipeline = make(family)
    assert len(call(pipeline, batch_size=2)) == 2
    pair = call(pipeline, seeds=range(1, 3), batch_size=2)
    for seeds in (np.array([1, 2]), torch.tensor([1, 2]), [np.int64(1), torch.tensor(2)]):
        assert torch.allclose(call(pipeline, seeds=seeds), pair, atol=1e-5)
    by_generator = call(pipeline, batch_size=1, generator=(torch.Generator().manual_seed(1),))
    assert torch.allclose(by_generator, call(pipeline, seeds=[1]), atol=1e-5)
    generator = torch.Generator()
    for message, options in {
        "seeds must be 3 ints, one per image; got 2": {"batch_size": 3, "seeds": [1, 2]},
        "or a list of 3, one per image; got a list of 1": {"batch_size": 3, "generator": [generator]},
        "one per image; got 5": {"seeds": 5},
        r"must be a sequence of ints, one per image; got np.int64\(3\)": {"seeds": np.int64(3)},
        r"must be a sequence of ints, one per image; got array\(3\)": {"seeds": np.array(3)},
        r"must be a sequence of ints, one per image; got \[1, 1.5\]": {"seeds": [1, 1.5]},
        r"must be a sequence of ints, one per image; got \[True\]": {"seeds": [True]},
        "must be a sequence of ints, one per image; got '12'": {"seeds": "12"},
        r"must be a sequence of ints, one per image; got \{1: 2\}": {"seeds": {1: 2}},
        r"one per image; got \[\]": {"seeds": []},
        "seeds or generator, not both": {"seeds": [1], "generator": generator},
        "batch_size must be an integer of at least 1; got 0": {"batch_size": 0},
        "batch_size must be an integer of at least 1; got True": {"batch_size": True},
    }.items():
        with pytest.raises(ValueError, match=message):
            call(pipeline, **options)


@pytest.mark.parametrize("family", ["unconditional", "class_conditional", "ddgan", "flow"])
def test_a_call_leaves_the_scheduler_as_it_was(family):
    pipeline = make(family)
    before = str(vars(pipeline.scheduler))
    call(pipeline, seeds=[1, 2])
    assert str(vars(pipeline.scheduler)) == before


# The shipped file


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_every_file_can_be_shipped_alone(path, tmp_path):
    text = single_file(path)
    assert text == single_file(path)
    (tmp_path / path.name).write_text(text)
    check_standalone(tmp_path / path.name)
    if "from trilemma." not in path.read_text():
        assert text == path.read_text()


def test_a_shipped_file_has_what_it_uses_and_nothing_else():
    text = single_file(FOLDER / "vae.py")
    for used in (shared.read_generators, shared.convert, shared.ShippedPipeline, shared._copy_code):
        assert text.count(inspect.getsource(used)) == 1
    for name in ("read_labels", "scheduler_steps", "SAMPLERS", "difflib"):
        assert name not in text
    text = single_file(FOLDER / "class_conditional.py")
    assert text.index("SAMPLERS: dict") < text.index("class ClassConditionalPipeline")
    bases = [text.index(f"class {name}Pipeline(") for name in ("Shipped", "Scheduler", "ClassConditional")]
    assert bases == sorted(bases)
    # Comments and the documentation of constants come along.
    assert "# from_config would replace" in text
    assert '"""PIL images, or floats' in single_file(FOLDER / "vae.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from trilemma.pipelines.shared import convert as to_images\n", "without `as`"),
        ("from trilemma.pipelines import shared\n", "must be a class, function or constant"),
        (
            "from trilemma.pipelines.shared import convert\n\ndef convert():\n    pass\n",
            "things called convert",
        ),
        (
            "from math import copysign as copy\n\nfrom trilemma.pipelines.scheduled import started\n",
            "two things",
        ),
    ],
)
def test_names_that_one_file_cannot_have(tmp_path, text, message):
    path = tmp_path / "code.py"
    path.write_text(f'"""A file."""\n\n{text}')
    with pytest.raises(ValueError, match=message):
        single_file(path)


STRANGER = """
import sys
sys.modules["trilemma"] = None
import numpy as np
from diffusers import DiffusionPipeline

root, generation = sys.argv[1], int(sys.argv[2])
for name in sys.argv[3:]:
    pipeline = DiffusionPipeline.from_pretrained(f"{root}/{name}{generation}", trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    if name == "unconditional":
        assert type(pipeline).__module__.startswith("diffusers.")
        import torch
        generator = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        options = {"generator": generator, "batch_size": 2, "num_inference_steps": 40}
    else:
        assert pipeline.family == {"plain": "unconditional"}.get(name, name)
        options = {"seeds": [3, 4]}
        if pipeline.class_names:
            options["class_labels"] = ["two", "one"]
    images = pipeline(output_type="np", **options).images
    # Alignment of memory and threads change the last bits of a network's output; a chain adds them up.
    np.testing.assert_allclose(images, np.load(f"{root}/{name}.npy"), atol=1e-4)
    pipeline.save_pretrained(f"{root}/{name}{generation + 1}")
"""


@pytest.mark.long
@pytest.mark.parametrize("save", [save_bundle, lambda pipeline, folder: pipeline.save_pretrained(folder)])
def test_a_stranger_draws_the_same_images_saves_and_loads_again(tmp_path, save):
    """The three generations: saved by the toolkit, by a stranger, and by a stranger from a stranger's.

    Each is a process with a home of its own, so that no code of an earlier one is there.
    """
    models = {family: make(family) for family in FAMILIES} | {"plain": plain()}
    for name, pipeline in models.items():
        labels = {"class_labels": ["two", "one"]} if name in WITH_CLASSES else {}
        np.save(tmp_path / f"{name}.npy", pipeline(seeds=[3, 4], output_type="np", **labels).images)
        save(pipeline, tmp_path / f"{name}0")
    for generation in ("0", "1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", STRANGER, str(tmp_path), generation, *models], capture_output=True,
            text=True, cwd=tmp_path, env=environment(HF_HOME=str(tmp_path / f"home{generation}")),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("unconditional*/**/*.py"))
    files = {name: name for name in models if name != "unconditional"} | {"plain": "unconditional"}
    for name, family in files.items():
        texts = {(tmp_path / f"{name}{n}" / f"pipeline_{family}.py").read_text() for n in (0, 1, 2, 3)}
        assert texts == {single_file(FOLDER / f"{family}.py")}


def test_the_arguments_of_diffusers_are_passed_on(tmp_path):
    pipeline = make("vdm")
    pipeline.save_pretrained(tmp_path, variant="ema", max_shard_size="10KB")
    assert len(list(tmp_path.glob("unet/*.ema-0*.safetensors"))) > 1
    assert (tmp_path / "unet" / "modeling_vdm_model.py").is_file()
    loaded = DiffusionPipeline.from_pretrained(tmp_path, variant="ema", trust_remote_code=True)
    assert torch.allclose(call(loaded, seeds=[1]), call(pipeline, seeds=[1]), atol=1e-5)


def test_a_network_of_ours_brings_the_code_of_the_pipeline_too(tmp_path):
    """A stock pipeline that a stranger saves again would lose the network's code."""
    pipeline = plain()
    pipeline.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.rglob("*.py")} == {
        "modeling_plain_unet.py", "pipeline_unconditional.py"
    }  # fmt: skip
    loaded = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert (loaded.family, type(loaded.unet).__name__) == ("unconditional", "PlainUNet2DModel")
    assert OutputFolder(tmp_path).family == "unconditional"
    loaded.register_modules(unet=UNet2DModel(**UNET))
    loaded.save_pretrained(tmp_path / "stock")
    assert not list((tmp_path / "stock").rglob("*.py"))
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "stock")) is DDPMPipeline


def test_a_network_of_ours_in_a_stock_pipeline_of_an_older_version(tmp_path):
    DDPMPipeline(plain().unet, DDPMScheduler(5)).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    shutil.copy(FOLDER / "networks" / "plain_unet.py", tmp_path / "unet" / "modeling_plain_unet.py")
    index["unet"] = ["modeling_plain_unet", "PlainUNet2DModel"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    loaded = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(loaded) is DDPMPipeline
    assert type(as_ours(loaded)) is UnconditionalPipeline


SECOND = """
from diffusers import DDPMPipeline, CMStochasticIterativeScheduler

class Second:
    def __init__(self, pipeline):
        self.pipeline = pipeline

def is_stock(kind, scheduler):
    return kind is DDPMPipeline and isinstance(scheduler, CMStochasticIterativeScheduler)

def from_stock(pipeline):
    return Second(pipeline)
"""


def test_two_families_may_be_saved_as_one_stock_pipeline(tmp_path, monkeypatch):
    """run.json names the family; without it, the scheduler decides."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "second.py").write_text(SECOND)
    monkeypatch.setattr(pipelines, "__path__", [*pipelines.__path__, str(tmp_path / "modules")])
    importlib.invalidate_caches()
    try:
        schedulers = {"unconditional": DDPMScheduler(5), "second": CMStochasticIterativeScheduler()}
        kinds = {"unconditional": "UnconditionalPipeline", "second": "Second"}
        for family, scheduler in schedulers.items():
            folder = OutputFolder(tmp_path / family)
            stock = DDPMPipeline(UNet2DModel(**UNET), scheduler)
            stock.save_pretrained(folder.path)
            assert folder.family == family
            assert type(as_ours(stock)).__name__ == kinds[family]
            assert type(as_ours(stock, "second")).__name__ == "Second"
            folder.run.write_text(json.dumps({"family": "second"}))
            assert folder.family == "second"
            folder.run.write_text("{}")
        monkeypatch.setattr(sys.modules["trilemma.pipelines.second"], "is_stock", lambda *arguments: True)
        with pytest.raises(ValueError, match=r"families unconditional, second: run.json .* must name one"):
            OutputFolder(tmp_path / "unconditional").family  # noqa: B018
    finally:
        sys.modules.pop("trilemma.pipelines.second", None)
        vars(pipelines).pop("second", None)


def test_a_stock_pipeline_of_no_family():
    with pytest.raises(ValueError, match="DDPMPipeline is not a pipeline of this toolkit's families"):
        as_ours(DDPMPipeline(UNet2DModel(**UNET), CMStochasticIterativeScheduler()))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "flow"])
def test_models_of_older_versions_get_the_interface(tmp_path, family):
    """Their code has no `family`, and no `sampler` and so on either."""
    pipeline = make(family)
    pipeline = pipeline.with_sampler(pipeline.samplers()[-1])
    folder = save_bundle(pipeline, tmp_path / "saved")
    for path in folder.glob("*.py"):
        path.write_text(path.read_text().replace(f'    family = "{family}"\n', ""))
    loaded = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    loaded.set_progress_bar_config(disable=True)
    assert "family" not in vars(type(loaded))
    ours = as_ours(loaded)
    assert type(ours) is type(pipeline)
    assert (ours.sampler, ours.class_names) == (pipeline.sampler, pipeline.class_names)
    assert torch.allclose(call(ours, seeds=[1]), call(pipeline, seeds=[1]), atol=1e-4)
    assert as_ours(ours) is ours


def test_a_pipeline_of_no_family_is_refused():
    class Other(DiffusionPipeline):
        pass

    with pytest.raises(ValueError, match="Other is not a pipeline of this toolkit's families"):
        as_ours(Other())
