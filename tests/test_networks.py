"""Networks: sizes against the paper, initialisation against its formulas, the ablation, configurations."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    LCMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trilemma.pipelines.networks.plain_unet import PlainUNet2DModel
from trilemma.training.networks.build import build_network, load_network_config
from trilemma.training.networks.rows import NETS, net_for
from trilemma.training.networks.whole import check_part

SIZES = {"mlp": 1, "unet_8": 8, "unet_16": 16, "unet_cifar10": 32, "unet_128": 128}
SIZES |= {"unet_64": 64, "unet_64_small": 64}
ABLATION = ["simple", "conv", "resnet", "resnet_attention"]
TINY = {
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}


def on_meta(name, resolution, channels=1, **options):
    with torch.device("meta"):
        return build_network(NETS[name], channels=channels, resolution=resolution, **options)


def flops(name, resolution):
    x = torch.empty(1, 1, resolution, resolution, device="meta")
    with FlopCounterMode(display=False) as counter:
        on_meta(name, resolution)(x, torch.zeros(1, device="meta"))
    return counter.get_total_flops()


def convolutions_and_linears(net):
    return [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("name", NETS)
def test_every_row_maps_images_to_images_of_that_size(name):
    size = SIZES.get(name, 28)
    net = on_meta(name, size, channels=3, out_channels=6, num_class_embeds=11)
    x = torch.empty(2, 3, size, size, device="meta")
    labels = torch.zeros(2, dtype=torch.long, device="meta")
    assert net(x, torch.zeros(2, device="meta"), labels).sample.shape == (2, 6, size, size)
    assert (net.config.in_channels, net.config.out_channels, net.config.sample_size) == (3, 6, size)
    assert net.config.num_class_embeds == 11


@pytest.mark.parametrize(
    ("name", "value"), [("freq_shift", "`id`"), ("norm_eps", [1]), ("layers_per_block", 1.5)]
)
def test_a_setting_of_the_wrong_type_is_named(tmp_path, name, value):
    """diffusers takes some of them, and fails with a TypeError in the first forward pass."""
    net = build_network(TINY, channels=1, resolution=8)
    check_part(net, tmp_path)
    net.register_to_config(**{name: value})
    with pytest.raises(ValueError, match=rf"config\.json has {name} "):
        check_part(net, tmp_path)


@pytest.mark.parametrize(("name", "value"), [
    ("clip_sample_range", "1"), ("trained_betas", 1e25), ("trained_betas", ["a"]), ("timestep_spacing", " "),
    ("num_train_timesteps", 999.5),
])  # fmt: skip
def test_a_setting_of_a_scheduler_of_the_wrong_type_is_named(tmp_path, name, value):
    for kind in (DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler, LCMScheduler):
        check_part(kind(), tmp_path)  # defaults of the wrong type are diffusers' own
    scheduler = DDPMScheduler()
    scheduler.register_to_config(**{name: value})
    with pytest.raises(ValueError, match=rf"scheduler_config\.json has {name} "):
        check_part(scheduler, tmp_path)


def test_a_part_that_is_not_diffusers_has_no_settings_to_check(tmp_path):
    """As the text encoders of transformers, whose configuration is an object."""
    part = nn.Linear(1, 1)
    part.config = SimpleNamespace(freq_shift="x")
    check_part(part, tmp_path)


def test_rows_need_no_torch():
    code = "import sys, trilemma.training.networks.rows; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cifar10_network_has_the_size_of_the_paper_and_predicts_no_noise_at_first():
    torch.manual_seed(0)
    net = build_network(NETS["unet_cifar10"], channels=3, resolution=32).eval()
    assert sum(p.numel() for p in net.parameters()) == 35_746_307
    noise = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        output = net(noise, torch.tensor([10, 900])).sample
    assert torch.count_nonzero(output) == 0
    assert abs((output - noise).square().mean() - 1) < 0.05


def test_initialisation_has_the_variance_of_the_paper():
    net = build_network(NETS["unet_28"], channels=1, resolution=28)
    assert all(torch.count_nonzero(m.bias) == 0 for m in convolutions_and_linears(net) if m.bias is not None)
    block = net.down_blocks[1].resnets[0]  # 32 -> 64 channels, 3x3
    bound = (3 / (9 * (32 + 64) / 2)) ** 0.5
    weight = block.conv1.weight
    assert weight.abs().max() <= bound
    torch.testing.assert_close(weight.std().item(), bound / 3**0.5, rtol=0.02, atol=0)
    blocks = [module for module in net.modules() if isinstance(module, ResnetBlock2D)]
    assert all(torch.count_nonzero(block.conv2.weight) == 0 for block in blocks)
    attention = net.mid_block.attentions[0]
    assert torch.count_nonzero(attention.to_out[0].weight) == 0
    assert torch.count_nonzero(attention.to_q.weight) > 0


def test_ablation_costs_the_same():
    for resolution in (28, 32):
        costs = [flops(name, resolution) for name in ABLATION]
        assert max(costs) / min(costs) < 1.05


def test_ablation_adds_one_thing_at_a_time():
    simple, conv, resnet, attention = (on_meta(name, 28) for name in ABLATION)
    norms = [sum(isinstance(m, nn.GroupNorm) for m in net.modules()) for net in (simple, conv, resnet)]
    assert norms[0] == 0 < norms[1] == norms[2]
    shapes = [[tuple(m.weight.shape) for m in convolutions_and_linears(net)] for net in (simple, conv)]
    assert shapes[0] == shapes[1]
    assert isinstance(conv, PlainUNet2DModel)
    assert isinstance(resnet, UNet2DModel)
    assert not any(name.endswith("to_q") for name, _ in resnet.named_modules())
    assert any(name.endswith("to_q") for name, _ in attention.named_modules())


def test_plain_blocks_have_no_residual_connection():
    net = PlainUNet2DModel(16, 1, 1, ("DownBlock2D",), ("UpBlock2D",), (8,), 1, normalize=False)
    block = net.unet.down_blocks[0].resnets[0]
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    assert torch.count_nonzero(block(torch.randn(1, 8, 4, 4), torch.randn(1, 32))) == 0


@pytest.mark.parametrize("name", ABLATION)
def test_ablation_starts_at_zero_and_every_weight_learns(name):
    torch.manual_seed(0)
    net = build_network(NETS[name], channels=1, resolution=8)
    x, t = torch.randn(8, 1, 8, 8), torch.arange(8) * 100
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    assert torch.count_nonzero(net(x, t).sample) == 0
    for _ in range(3):  # zeroes in a row take a step each to be left behind
        optimizer.zero_grad()
        (net(x, t).sample - x).square().mean().backward()
        optimizer.step()
    assert [n for n, p in net.named_parameters() if torch.count_nonzero(p.grad) == 0] == []


def test_signal_neither_fades_nor_grows_without_norms():
    torch.manual_seed(0)
    net = build_network(NETS["simple"], channels=1, resolution=28)
    seen = []
    net.unet.conv_out.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].std().item()))
    net(torch.randn(2, 1, 28, 28), torch.tensor([0, 999]))
    assert 0.1 < seen[0] < 10


def test_plain_network_survives_saving(tmp_path):
    row = NETS["simple"] | {"block_out_channels": [8, 8, 16]}
    net = build_network(row, channels=1, resolution=8)
    nn.init.normal_(net.unet.conv_out.weight)
    net.save_pretrained(tmp_path)
    again = PlainUNet2DModel.from_pretrained(tmp_path)
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(again(x, 3).sample, net.eval()(x, 3).sample)
    saved = load_network_config(str(tmp_path))
    assert isinstance(build_network(saved, channels=1, resolution=8), PlainUNet2DModel)
    assert saved["normalize"] is False


def test_data_and_flags_replace_the_configuration():
    row = TINY | {"in_channels": 3, "out_channels": 3, "sample_size": 64, "dropout": 0.1, "_name_or_path": ""}
    net = build_network(row, channels=1, resolution=8, dropout=0.3)
    assert (net.config.in_channels, net.config.out_channels, net.config.sample_size) == (1, 1, 8)
    assert net.config.dropout == 0.3
    assert build_network(row, channels=1, resolution=8).config.dropout == 0.1
    assert row["sample_size"] == 64


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match="PlainUNet2DModel, PointMLP; got 'UNet2DConditionModel'"):
        build_network({"_class_name": "UNet2DConditionModel"}, channels=1, resolution=8)
    with pytest.raises(ValueError, match="no option 'layer_per_block'; did you mean layers_per_block"):
        build_network({**TINY, "layer_per_block": 1}, channels=1, resolution=8)
    with pytest.raises(ValueError, match=r"multiple of 4 .* got 30\. Use 28 or 32"):
        build_network(NETS["unet_28"], channels=1, resolution=30)


@pytest.mark.parametrize("resolution", [6, 10, 12, 14, 20])
def test_a_size_is_refused_only_if_the_network_fails_at_it(resolution):
    row = NETS["unet_28"] | {"block_out_channels": (8, 8, 8), "attention_head_dim": 8}
    try:
        build_network(row, channels=1, resolution=resolution)
        fits = True
    except ValueError:
        fits = False
    net = build_network(row, channels=1, resolution=8)
    try:
        works = net(torch.zeros(2, 1, resolution, resolution), 0).sample.shape[-1] == resolution
    except RuntimeError:
        works = False
    assert fits == works


def test_load_network_config_from_files_and_folders(tmp_path):
    net = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **TINY)
    DDPMPipeline(net, DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    net.save_pretrained(tmp_path / "net")
    (tmp_path / "mine.json").write_text(json.dumps(TINY))
    for source in ("pipeline", "pipeline/unet", "net", "net/config.json", "mine.json"):
        row = load_network_config(str(tmp_path / source))
        again = build_network(row, channels=1, resolution=8)
        assert [p.shape for p in again.parameters()] == [p.shape for p in net.parameters()]


def test_load_network_config_says_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no such file as .*config\.json or .*unet"):
        load_network_config(str(tmp_path))
    with pytest.raises(ValueError, match=r"nothing\.json"):
        load_network_config(str(tmp_path / "nothing.json"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="nor a model on the Hub"):
        load_network_config("nobody/nothing")


@pytest.mark.parametrize("resolution", [8, 16, 28, 32, 64, 128])
def test_the_network_for_a_resolution_takes_it(resolution):
    on_meta(net_for(resolution), resolution)


def test_the_network_for_points_is_chosen_by_the_kind_of_data():
    assert net_for(1, points=True) == "mlp"
    assert net_for(1) != "mlp"
