"""The FID's Inception-v3 as a torch module: which pixels go in, which numbers come out, which weights.

FID (Heusel et al. 2017, arXiv:1706.08500) and the Inception score (Salimans et al. 2016, arXiv:1606.03498)
are defined by one TensorFlow graph, `classify_image_graph_def.pb` of 2015-12-05. It is Inception-v3 (Szegedy
et al. 2015, arXiv:1512.00567) but for these points, and every one of them moves the FID:

- images are resized to 299 x 299 by TensorFlow 1's bilinear rule, `src = dst * in / out`, with no half-pixel
  offset and no antialiasing, then mapped to `(x - 128) / 128`;
- average pools divide by the number of pixels under the window, without the padding;
- the pool branch of the last block takes the maximum;
- the classifier has 1,008 outputs, and the score's reference code reads them before the bias is added.

Module names are torchvision's, so that the file shared by pytorch-fid and torch-fidelity loads as it is.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import nn

WEIGHTS_FILE = "pt_inception-2015-12-05-6726825d.pth"
WEIGHTS_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{WEIGHTS_FILE}"
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
WEIGHTS_VARIABLE = "TRILEMMA_INCEPTION_WEIGHTS"
RESIZE = "tf1-bilinear-299"

Size = int | tuple[int, int]


def file_sha256(path: Path) -> str:
    """The hash that names these weights in every result, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def resize_tf1(x: torch.Tensor, size: int) -> torch.Tensor:
    """Resize float x (B, C, H, W) to (B, C, size, size) as TensorFlow 1's `resize_bilinear` does.

    `src = dst * in / out`; no option of `F.interpolate` has this rule, as `align_corners=False` adds a
    half-pixel offset. The last rows and columns, whose next neighbour would lie outside, repeat the border.
    """

    def along(x: torch.Tensor, dim: int) -> torch.Tensor:
        length = x.shape[dim]
        source = torch.arange(size, dtype=torch.float32, device=x.device) * (length / size)
        low = source.long()
        high = (low + 1).clamp(max=length - 1)
        weight = (source - low).to(x.dtype)
        if dim == 2:
            weight = weight[:, None]
        return torch.lerp(x.index_select(dim, low), x.index_select(dim, high), weight)

    return along(along(x, 2), 3)


class ConvBN(nn.Module):
    """Convolution without bias, batch normalisation (epsilon 1e-3), ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Size, stride: int = 1, padding: Size = 0):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def average_pool(x: torch.Tensor) -> torch.Tensor:
    """3x3 mean that leaves the border out of its count, as TensorFlow."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def max_pool(x: torch.Tensor) -> torch.Tensor:
    """3x3 maximum."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


class MixedA(nn.Module):
    """35 x 35 (Mixed_5b..5d): 1x1, 5x5 and double 3x3 convolutions beside an average pool."""

    def __init__(self, width: int, pool_width: int):
        super().__init__()
        self.branch1x1 = ConvBN(width, 64, 1)
        self.branch5x5_1 = ConvBN(width, 48, 1)
        self.branch5x5_2 = ConvBN(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvBN(width, 64, 1)
        self.branch3x3dbl_2 = ConvBN(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvBN(96, 96, 3, padding=1)
        self.branch_pool = ConvBN(width, pool_width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.branch1x1(x)
        b = self.branch5x5_2(self.branch5x5_1(x))
        c = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        d = self.branch_pool(average_pool(x))
        return torch.cat([a, b, c, d], 1)


class MixedB(nn.Module):
    """35 -> 17 (Mixed_6a): strided 3x3 and double 3x3 convolutions beside a strided max pool."""

    def __init__(self, width: int):
        super().__init__()
        self.branch3x3 = ConvBN(width, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvBN(width, 64, 1)
        self.branch3x3dbl_2 = ConvBN(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvBN(96, 96, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.branch3x3(x)
        b = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([a, b, F.max_pool2d(x, 3, stride=2)], 1)


class MixedC(nn.Module):
    """17 x 17 (Mixed_6b..6e): 7x7 convolutions factored into 1x7 and 7x1, once and twice."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        row = {"kernel": (1, 7), "padding": (0, 3)}
        column = {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = ConvBN(width, 192, 1)
        self.branch7x7_1 = ConvBN(width, inner, 1)
        self.branch7x7_2 = ConvBN(inner, inner, **row)
        self.branch7x7_3 = ConvBN(inner, 192, **column)
        self.branch7x7dbl_1 = ConvBN(width, inner, 1)
        self.branch7x7dbl_2 = ConvBN(inner, inner, **column)
        self.branch7x7dbl_3 = ConvBN(inner, inner, **row)
        self.branch7x7dbl_4 = ConvBN(inner, inner, **column)
        self.branch7x7dbl_5 = ConvBN(inner, 192, **row)
        self.branch_pool = ConvBN(width, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.branch1x1(x)
        b = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        c = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        c = self.branch7x7dbl_5(self.branch7x7dbl_4(c))
        d = self.branch_pool(average_pool(x))
        return torch.cat([a, b, c, d], 1)


class MixedD(nn.Module):
    """17 -> 8 (Mixed_7a): a strided 3x3 and a 7x7 followed by a strided 3x3 beside a strided max pool."""

    def __init__(self, width: int):
        super().__init__()
        self.branch3x3_1 = ConvBN(width, 192, 1)
        self.branch3x3_2 = ConvBN(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvBN(width, 192, 1)
        self.branch7x7x3_2 = ConvBN(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = ConvBN(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = ConvBN(192, 192, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.branch3x3_2(self.branch3x3_1(x))
        b = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([a, b, F.max_pool2d(x, 3, stride=2)], 1)


class MixedE(nn.Module):
    """8 x 8 (Mixed_7b, 7c): branches that end in a 1x3 beside a 3x1; `pool` feeds the pool branch."""

    def __init__(self, width: int, pool: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.pool = pool
        self.branch1x1 = ConvBN(width, 320, 1)
        self.branch3x3_1 = ConvBN(width, 384, 1)
        self.branch3x3_2a = ConvBN(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = ConvBN(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = ConvBN(width, 448, 1)
        self.branch3x3dbl_2 = ConvBN(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvBN(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = ConvBN(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = ConvBN(width, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.branch1x1(x)
        b = self.branch3x3_1(x)
        c = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        d = self.branch_pool(self.pool(x))
        b = [self.branch3x3_2a(b), self.branch3x3_2b(b)]
        c = [self.branch3x3dbl_3a(c), self.branch3x3dbl_3b(c)]
        return torch.cat([a, *b, *c, d], 1)


class InceptionV3(nn.Module):
    """uint8 images (B, 3, H, W) -> pool3 features (B, 2048) and logits (B, 1008) without their bias.

    The Inception score's reference code multiplies pool3 by the matrix of the last layer and stops there, so
    the published scores are of these logits; `logits + fc.bias` are the network's class scores.
    """

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = ConvBN(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvBN(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvBN(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvBN(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvBN(80, 192, 3)
        self.Mixed_5b = MixedA(192, 32)
        self.Mixed_5c = MixedA(256, 64)
        self.Mixed_5d = MixedA(288, 64)
        self.Mixed_6a = MixedB(288)
        self.Mixed_6b = MixedC(768, 128)
        self.Mixed_6c = MixedC(768, 160)
        self.Mixed_6d = MixedC(768, 160)
        self.Mixed_6e = MixedC(768, 192)
        self.Mixed_7a = MixedD(768)
        self.Mixed_7b = MixedE(1280, average_pool)
        self.Mixed_7c = MixedE(2048, max_pool)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = (resize_tf1(images.float(), 299) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))  # (B, 192, 71, 71)
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (B, 288, 35, 35)
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # (B, 768, 17, 17)
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (B, 2048, 8, 8)
        features = x.mean((2, 3))
        return features, F.linear(features, self.fc.weight)


def find_weights(path: str | None, cache: Path) -> Path:
    """The weights file: `path`, else $TRILEMMA_INCEPTION_WEIGHTS, else in `cache`, downloaded once."""
    named = path or os.environ.get(WEIGHTS_VARIABLE)
    if named:
        file = Path(named).expanduser()
        if not file.is_file():
            source = "--extractor_weights" if path else f"${WEIGHTS_VARIABLE}"
            raise FileNotFoundError(f"{source} must name the file {WEIGHTS_FILE}; there is no file {file}")
        return file
    file = cache / WEIGHTS_FILE
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Writes beside the target, compares the hash, and only then renames.
            torch.hub.download_url_to_file(WEIGHTS_URL, str(file), hash_prefix=WEIGHTS_SHA256)
        except (URLError, OSError, RuntimeError) as error:
            raise RuntimeError(
                f"the Inception weights could not be downloaded from {WEIGHTS_URL} to {file.parent}: {error}"
                f". Fetch the file by other means and name it by --extractor_weights or ${WEIGHTS_VARIABLE},"
                f" or put it at {file}; or choose --feature_extractor classifier, which needs no download"
            ) from error
    return file


def load_inception(path: str | None, cache: Path) -> tuple[InceptionV3, str]:
    """The network with the published weights, in evaluation mode, and the sha256 of their file.

    A file with another hash is refused: its distances could not be compared with published ones.
    """
    file = find_weights(path, cache)
    sha256 = file_sha256(file)
    if sha256 != WEIGHTS_SHA256:
        raise ValueError(
            f"{file} is not the published Inception network: its sha256 is {sha256}, expected "
            f"{WEIGHTS_SHA256}. Replace it by {WEIGHTS_URL}, or delete it from the cache to download it again"
        )
    with torch.device("meta"):  # no time spent on an initialisation that the file replaces
        net = InceptionV3()
    net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True), assign=True)
    return net.eval().requires_grad_(False), sha256
