"""Bundles load where the toolkit is not installed: from disk, from the Hub, two families in one process."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from huggingface_hub import HfApi, constants
from loopback_hub import LoopbackHub

from trilemma.model_cards.hub.bundle import check_standalone, save_bundle
from trilemma.pipelines.class_conditional import ClassConditionalPipeline
from trilemma.pipelines.ddgan import DDGANPipeline
from trilemma.pipelines.networks.vae_model import VAEModel
from trilemma.pipelines.networks.vdm_model import VDMModel
from trilemma.pipelines.unconditional import UnconditionalPipeline
from trilemma.pipelines.vae import VAEPipeline
from trilemma.pipelines.vdm import VDMPipeline

TOY_NET = """
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

class ToyNet(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, width: int = 4):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.linspace(0.1, 1, width))
"""
TOY_PIPELINE = """
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin

class ToyPipeline(DiffusionPipeline):
    def __init__(self, net: ModelMixin, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(net=net, scheduler=scheduler)

    def __call__(self, seeds, num_inference_steps, output_type="np"):
        noise = [torch.randn(self.net.scale.shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return ImagePipelineOutput(images=(torch.stack(noise) * self.net.scale).detach().numpy())
"""
# What a stranger runs. `trilemma` cannot be imported, and diffusers' warnings are errors worth seeing.
STRANGER = """
import sys
sys.modules["trilemma"] = None
import numpy as np
from diffusers import DDIMPipeline, DDPMPipeline, DiffusionPipeline

def load(name):
    return DiffusionPipeline.from_pretrained(name, trust_remote_code=True)

def images(pipe, **options):
    pipe.set_progress_bar_config(disable=True)
    return pipe(seeds=[3, 4], output_type="np", **options).images

def check(name, like, options):
    np.testing.assert_allclose(images(load(name), **options), np.load(like), atol=1e-5)
"""


def load_module(path, source):
    """Import `source` as a module of its own, as if it were a file of somebody's project."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(".".join(path.with_suffix("").parts[-3:]), path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def make_unet(**config):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        add_attention=False,
        **config,
    ).eval()


def class_conditional():
    names = ["a: b", "#1", "<script>"]
    return ClassConditionalPipeline(make_unet(num_class_embeds=4), DDIMScheduler(), class_names=names)


def toy(tmp_path):
    net = load_module(tmp_path / "src" / "toy_net.py", TOY_NET).ToyNet()
    return load_module(tmp_path / "src" / "toy.py", TOY_PIPELINE).ToyPipeline(net, DDPMScheduler())


def images(pipe, **options):
    pipe.set_progress_bar_config(disable=True)
    return pipe(seeds=[3, 4], output_type="np", **options).images


def every_family(tmp_path):
    """Name -> pipeline that ships code of its own, and what to call it with."""
    vdm = VDMModel(TINY, gamma_type="monotone", sample_size=8, in_channels=1)
    gan = make_unet(class_embed_type="identity", resnet_time_scale_shift="scale_shift")
    steps = {"num_inference_steps": 4}
    return {
        "cc": (class_conditional(), {"class_labels": ["#1", None], **steps}),
        "toy": (toy(tmp_path), steps),
        "ddgan": (DDGANPipeline(gan, DDPMScheduler(4, prediction_type="sample")), {}),
        "vdm": (VDMPipeline(vdm.eval()), steps),
        "vae": (VAEPipeline(VAEModel(8, 1, 4, (8, 16)).eval()), {}),
    }


def index(folder):
    return json.loads((folder / "model_index.json").read_text())


def content(path):
    """A file's bytes; of JSON the values, without the path that a loaded pipeline remembers."""
    if path.suffix != ".json":
        return path.read_bytes()
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "_name_or_path"}


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_a_bundle_consists_of(tmp_path):
    folder = save_bundle(class_conditional(), tmp_path / "cc")
    assert files(folder) == {
        "model_index.json",
        "pipeline_class_conditional.py",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    assert index(folder)["_class_name"] == ["pipeline_class_conditional", "ClassConditionalPipeline"]
    assert index(folder)["unet"] == ["diffusers", "UNet2DModel"]
    folder = save_bundle(toy(tmp_path), tmp_path / "toy")
    assert index(folder)["net"] == ["modeling_toy_net", "ToyNet"]
    assert {"pipeline_toy.py", "net/modeling_toy_net.py"} <= files(folder)


def test_stock_pipelines_get_no_code(tmp_path):
    folder = save_bundle(DDPMPipeline(make_unet(), DDPMScheduler()), tmp_path / "stock")
    assert index(folder)["_class_name"] == "DDPMPipeline"
    assert not [name for name in files(folder) if name.endswith(".py")]


def test_an_unconditional_pipeline_becomes_a_stock_one(tmp_path):
    folder = save_bundle(UnconditionalPipeline(make_unet(), DDPMScheduler()), tmp_path / "stock")
    assert index(folder)["_class_name"] == "DDPMPipeline"
    assert not [name for name in files(folder) if name.endswith(".py")]
    assert type(DiffusionPipeline.from_pretrained(folder)) is DDPMPipeline


@pytest.mark.long
def test_from_disk_and_from_the_hub_without_the_toolkit(tmp_path, monkeypatch):
    """One stranger reads the folders and saves what was loaded again; another has only the Hub."""
    pipes = every_family(tmp_path)
    for name, (pipe, options) in pipes.items():
        np.save(tmp_path / f"{name}.npy", images(pipe, **options))
        save_bundle(pipe, tmp_path / name)
    save_bundle(UnconditionalPipeline(make_unet(), DDPMScheduler()), tmp_path / "stock")
    called = f"root, called = {str(tmp_path)!r}, { {name: options for name, (_, options) in pipes.items()} }"
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with LoopbackHub() as hub:
        hub.python(STRANGER + called + """
DDIMPipeline.from_pretrained(root + "/stock"), DDPMPipeline.from_pretrained(root + "/stock")
assert type(DiffusionPipeline.from_pretrained(root + "/stock")) is DDPMPipeline
try:
    DiffusionPipeline.from_pretrained(root + "/cc")
except ValueError as error:
    assert "trust_remote_code" in str(error)
pipes = {name: load(f"{root}/{name}") for name in called}
for name, pipe in pipes.items():
    np.testing.assert_allclose(images(pipe, **called[name]), np.load(f"{root}/{name}.npy"), atol=1e-5)
    if name != "toy":  # whose class is not one of the families'
        pipe.save_pretrained(f"{root}/{name}-again", max_shard_size="1GB")
pipes["vae"].save_pretrained(root + "/pushed", push_to_hub=True, repo_id="tester/pushed")
""", tmp_path / "disk", token=hub.token)
        api = HfApi(endpoint=hub.url, token=hub.token)
        ours = [name for name in pipes if name != "toy"]
        for name in (*(f"{name}-again" for name in ours), "toy", "stock"):
            api.create_repo(f"tester/{name}", private=name == "toy")
            api.upload_folder(repo_id=f"tester/{name}", folder_path=tmp_path / name)
        hub.python(STRANGER + called + """
for name in [*called, "cc"]:
    check(f"tester/{name}" + "-again" * (name != "toy"), f"{root}/{name}.npy", called[name])
check("tester/pushed", f"{root}/vae.npy", called["vae"])
assert load("tester/cc-again").class_names == ("a: b", "#1", "<script>")
DDIMPipeline.from_pretrained("tester/stock")
assert type(DiffusionPipeline.from_pretrained("tester/stock")) is DDPMPipeline
""", tmp_path / "hub", token=hub.token)
    for name in ours:
        again, first = tmp_path / f"{name}-again", tmp_path / name
        assert files(again) == files(first)
        for file in files(first):
            assert content(again / file) == content(first / file), f"{file} differs"


def test_results_and_logs_in_the_folder_stay_and_an_older_bundle_goes(tmp_path):
    folder = save_bundle(toy(tmp_path), tmp_path / "out")
    (folder / "logs").mkdir()
    (folder / "logs" / "events").write_text("kept")
    (folder / "results.jsonl").write_text("kept")
    save_bundle(class_conditional(), folder)
    assert {"logs/events", "results.jsonl", "pipeline_class_conditional.py"} <= files(folder)
    assert not {"pipeline_toy.py", "net/modeling_toy_net.py"} & files(folder)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_failed_save_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    folder = save_bundle(class_conditional(), tmp_path / "out")
    before = {name: (folder / name).read_bytes() for name in files(folder)}

    def disk_full(self, *_args, **_options):
        raise OSError("No space left on device")

    monkeypatch.setattr(UNet2DModel, "save_pretrained", disk_full)
    with pytest.raises(OSError, match="No space"):
        save_bundle(class_conditional(), folder)
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("line", [
    "import trilemma",
    "from trilemma.training.diffusion.process import GaussianProcess",
    "import torch, scipy",
    "from .networks import Net",
    "from . import networks",
    "def f():\n    import accelerate",
    '"""\n    from .networks import Net\n"""',
])
def test_files_that_a_stranger_cannot_import(tmp_path, line):
    source = tmp_path / "code.py"
    source.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"code\.py"):
        check_standalone(source)


def test_pickles_are_refused(tmp_path):
    pipe = toy(tmp_path)

    def save_a_pickle(folder):
        Path(folder).mkdir(parents=True)
        torch.save({}, Path(folder) / "net.bin")

    pipe.net.save_pretrained = save_a_pickle
    with pytest.raises(ValueError, match=r"net\.bin"):
        save_bundle(pipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_component_in_a_folder_that_diffusers_takes_for_its_own(tmp_path):
    net = load_module(tmp_path / "src" / "ddpm" / "net.py", TOY_NET).ToyNet()
    pipe = load_module(tmp_path / "src" / "toy.py", TOY_PIPELINE).ToyPipeline(net, DDPMScheduler())
    with pytest.raises(ValueError, match="folder called 'ddpm'"):
        save_bundle(pipe, tmp_path / "out")


def test_a_list_in_the_index_is_refused(tmp_path):
    """diffusers takes it for a component and fails, but only when the model is loaded from the Hub."""
    source = TOY_PIPELINE.replace("scheduler: SchedulerMixin", "scheduler, names=('a', 'b')")
    registered = "__init__()\n        self.register_to_config(names=list(names))\n"
    source = source.replace("__init__()\n", registered)
    module = load_module(tmp_path / "src" / "listed.py", source)
    with pytest.raises(ValueError, match=r"names: .* make it a dict"):
        save_bundle(module.ToyPipeline(toy(tmp_path).net, DDPMScheduler()), tmp_path / "out")
