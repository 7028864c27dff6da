"""What a script gives as objects where the command line names files: images, held-out images, a network."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from trilemma.training.options.groups import NetConfig

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from trilemma.training.images.image_set import Images

CHOOSES_IMAGES = (
    "dataset_name", "dataset_config_name", "dataset_revision", "train_data_dir", "train_split",
    "image_column", "label_column", "classes", "resolution", "channels", "center_crop", "skip_bad_images",
    "max_train_images", "validation_split", "preserve_input_precision", "streaming", "shuffle_buffer",
    "stream_head", "num_classes",
)  # fmt: skip
"""Options that say which images are read, and how: none of them is left where images are given."""

CHOOSES_NETWORK = ("net", "model_config_name_or_path", "init_from", "init_new_classes", "minutes", "dropout")
"""The same for a network."""


class InMemory(NamedTuple):
    """Objects of a script; None for what the options name."""

    images: "Images | None" = None
    held_out: "Images | None" = None
    network: "ModelMixin | None" = None

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json says of them: no command line gives them again."""
        given = {
            "images": self.images and self.images.name,
            "network": self.network and type(self.network).__name__,
        }
        given = {what: name for what, name in given.items() if name}
        return {"in_memory": given} if given else {}

    @property
    def replaced(self) -> dict[str, str]:
        """Option that has no effect beside these objects -> the argument that takes its place."""
        images = dict.fromkeys(CHOOSES_IMAGES, "images") if self.images is not None else {}
        return images | (dict.fromkeys(CHOOSES_NETWORK, "network") if self.network is not None else {})


NOTHING = InMemory()


@dataclass(frozen=True)
class NetworkInMemory(NetConfig):
    """The options of a network that is made already. Its own field is no flag and in no file."""

    module: Any = None


def with_network(config: Any, network: "ModelMixin | None") -> Any:
    """The configuration of a run that trains this network; ValueError for a family with its own."""
    if network is None:
        return config
    if "net" not in {field.name for field in fields(config)}:
        raise ValueError("network= is not for this family, whose options make its network")
    options = {field.name: getattr(config.net, field.name) for field in fields(NetConfig)}
    return replace(config, net=NetworkInMemory(**options, module=network))


def in_memory(config: Any) -> bool:
    """Whether the network of a run is one of a script."""
    return isinstance(getattr(config, "net", None), NetworkInMemory)


def check_replaced(memory: InMemory, typed: Mapping[str, Any]) -> None:
    """ValueError for an option that an object of the script makes pointless."""
    for name, argument in memory.replaced.items():
        if name in typed:
            hint = "give it to load_images" if argument == "images" else "leave out one of the two"
            raise ValueError(f"--{name} has no effect with {argument}= in memory; {hint}")
