"""Every extractor keeps one contract: uint8 in, the same features in any batch, errors that name a remedy."""


import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

from trilemma.eval.features import inception
from trilemma.eval.features.extractors import (
    Features,
    VisionNet,
    load_extractor,
)
from trilemma.eval.features.table import EXTRACTORS
from trilemma.eval.scoring.naming import metric_name
from trilemma.training.images.image_set import load_images
from trilemma.training.options.groups import DataConfig


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """For each extractor what `load_extractor` is given: digits, and small networks with random weights."""
    folder = tmp_path_factory.mktemp("extractors")
    digits = load_images(DataConfig(dataset_name="digits", cache_dir=str(folder)))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 224}
    Dinov2Model(Dinov2Config(**sizes, patch_size=56)).save_pretrained(folder / "dinov2")
    config = CLIPVisionConfig(**sizes, patch_size=56, intermediate_size=32, projection_dim=8)
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "clip")
    net = inception.InceptionV3()
    for module in net.modules():  # torch's default would let activations shrink to (slow) denormal numbers
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(net.state_dict(), folder / "inception.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "WEIGHTS_SHA256", inception.file_sha256(folder / "inception.pth"))
        yield {
            "inception": {"weights": str(folder / "inception.pth")},
            "dinov2": {"weights": str(folder / "dinov2")},
            "clip": {"weights": str(folder / "clip")},
            "classifier": {"reference": digits, "cache_dir": str(folder)},
            "pixels": {"reference": digits},
        }


@pytest.fixture(scope="module")
def extractors(sources):
    return {name: load_extractor(name, **source) for name, source in sources.items()}


@pytest.fixture
def images():
    values = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)
    return torch.from_numpy(values)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_outputs_are_as_declared(extractors, images, name):
    extractor = extractors[name]
    out = extractor(images)
    assert isinstance(out, Features)
    assert extractor.name == name
    assert out.features.shape == (3, extractor.dim)
    assert out.features.dtype == torch.float32
    assert not out.features.requires_grad
    if extractor.num_classes is None:
        assert out.logits is None
    else:
        assert out.logits.shape == (3, extractor.num_classes)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_a_rank_without_images_has_no_features(extractors, images, name):
    assert extractors[name](images[:0]).features.shape == (0, extractors[name].dim)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_features_do_not_depend_on_the_batch(extractors, images, name):
    extractor = extractors[name]
    alone = torch.cat([extractor(image[None]).features for image in images])
    torch.testing.assert_close(extractor(images).features, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_autocast_around_it_changes_nothing(extractors, images, name):
    expected = extractors[name](images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(extractors[name](images), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_loading_again_gives_the_same_protocol_and_features(sources, extractors, images, name):
    again = load_extractor(name, **sources[name])
    assert (again.sha256, again.resize) == (extractors[name].sha256, extractors[name].resize)
    # The weights are the same to the bit, as the sha256 says, but may lie otherwise in memory.
    torch.testing.assert_close(again(images), extractors[name](images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["inception", "dinov2", "clip"])
def test_grey_images_are_repeated(extractors, images, name):
    colour = images.repeat(1, 3, 1, 1)
    torch.testing.assert_close(extractors[name](images), extractors[name](colour), rtol=1e-4, atol=1e-5)


def test_pixels_are_the_values(extractors, images):
    assert torch.equal(extractors["pixels"](images).features, images.reshape(3, 64).float())


def test_float_images_are_refused_with_the_conversion_named(extractors, images):
    with pytest.raises(ValueError, match=r"uint8.*float32.*to_uint8"):
        extractors["pixels"](images / 255)


@pytest.mark.parametrize(("name", "channels"), [("inception", 4), ("dinov2", 2), ("classifier", 3)])
def test_wrong_channels_are_refused(extractors, name, channels):
    with pytest.raises(ValueError, match=rf"{name} takes images .*{channels}, 8, 8"):
        extractors[name](torch.zeros(2, channels, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("name", ["classifier", "pixels"])
def test_wrong_sizes_are_refused_where_nothing_is_resized(extractors, name):
    with pytest.raises(ValueError, match=rf"{name} takes 8x8 images.*9x9"):
        extractors[name](torch.zeros(2, 1, 9, 9, dtype=torch.uint8))


def test_the_classifier_serves_from_its_file_too(sources, extractors, images):
    loaded = load_extractor("classifier", weights=str(extractors["classifier"].file))
    assert loaded.sha256 == extractors["classifier"].sha256
    assert 0 <= loaded.judge_accuracy <= 1
    torch.testing.assert_close(loaded(images), extractors["classifier"](images), rtol=1e-4, atol=1e-5)


def pillow_pixels(image: np.ndarray, mean, std) -> torch.Tensor:
    resized = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC))
    return torch.from_numpy((resized / 255 - np.array(mean)) / np.array(std)).permute(2, 0, 1).float()


@pytest.mark.parametrize("name", ["dinov2", "clip"])
@pytest.mark.parametrize("side", [8, 32, 300])
def test_vision_preprocessing_is_pillows(extractors, name, side):
    net = extractors[name].net
    image = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    prepared = net.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    expected = pillow_pixels(image, net.mean.flatten().numpy() / 255, net.std.flatten().numpy() / 255)
    # Pillow computes in fixed point: a value may round to the next level in each of its two passes.
    level = 1 / net.std.min().item()
    torch.testing.assert_close(prepared, expected, rtol=0, atol=2.001 * level)
    assert ((prepared - expected).abs() > 0.5 * level).float().mean() < 0.01


def test_vision_preprocessing_is_that_of_clips_own_processor(extractors):
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    net = extractors["clip"].net
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    expected = module.CLIPImageProcessorPil()(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    prepared = net.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None])
    torch.testing.assert_close(prepared, expected, rtol=0, atol=2.001 / net.std.min().item())


def test_vision_features_are_what_transformers_computes(sources, extractors, images):
    extractor = extractors["dinov2"]
    model = Dinov2Model.from_pretrained(sources["dinov2"]["weights"]).eval()
    pixels = extractor.net.preprocess(images.repeat(1, 3, 1, 1))
    with torch.no_grad():
        tokens = model(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(extractor(images).features, tokens[:, 0])
    assert isinstance(extractor.net, VisionNet)


def test_another_networks_folder_is_refused(sources):
    with pytest.raises(ValueError, match=r"--extractor_weights .*is no Dinov2Model.*missing"):
        load_extractor("dinov2", weights=sources["clip"]["weights"])


def test_a_network_that_cannot_be_had_names_the_ways_out(tmp_path):
    ways = r"(?s)--feature_extractor clip.*nowhere.*--extractor_weights.*classifier"
    with pytest.raises(RuntimeError, match=ways):
        load_extractor("clip", weights=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["classifier", "pixels"])
def test_extractors_made_of_the_reference_ask_for_it(name):
    with pytest.raises(ValueError, match=rf"{name}.*--reference must be a data set"):
        load_extractor(name)


def test_unknown_names_list_the_choices():
    with pytest.raises(ValueError, match=r"must be one of inception, .*pixels; got 'vgg'"):
        load_extractor("vgg")


def test_only_inceptions_distance_is_called_fid():
    names = {name: metric_name("fd", name, 50_000, "train", whole=True) for name in EXTRACTORS}
    assert names["inception"] == "fid"
    assert all(distance == f"fd_{name}" for name, distance in names.items() if name != "inception")
