"""Tiny random ResNets in the layouts of transformers and torchvision, and what torch computes with them.

    python tests/support/make_resnet_fixtures.py

needs torch and transformers, which the library and its tests do without; the fixtures are kept beside it.
`versions.json` says which versions made them. Transformers' layout comes from its own classes; torchvision's from a
module here, with torchvision's names, as torchvision itself is not needed for its layout.

Each folder `data/resnet-*` is a checkpoint and `expected.npz`:
    images          uint8 [N, H, W, 3]
    logits          in evaluation, [N, 7]; absent where the checkpoint has no head
    features        in evaluation, [N, F]
    train_logits    with BatchNorm live
    train_features
    train_mean      running mean of the stem's BatchNorm after that one batch
    train_var       its running variance, with torch's unbiased variance of the batch
    train_count     numbers per channel that it is an average of
All are computed in float64 from the float32 weights, on images normalised as for ImageNet.
"""

import copy
import json
from pathlib import Path

import numpy as np
import safetensors
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

DATA = Path(__file__).parents[1] / "dg" / "pretrained" / "data"
CLASSES = 7
# Odd and even, not square: padding and strides show.
HEIGHT, WIDTH = 33, 40


class Block(nn.Module):
    def __init__(self, channels, kernels, stride):
        super().__init__()
        # The stride is on the first 3 x 3 convolution.
        strided = kernels.index(3) + 1
        self.count = len(kernels)
        for number, size in enumerate(kernels, 1):
            step = stride if number == strided else 1
            conv = nn.Conv2d(channels[number - 1], channels[number], size, step, size // 2, bias=False)
            setattr(self, f"conv{number}", conv)
            setattr(self, f"bn{number}", nn.BatchNorm2d(channels[number]))
        self.downsample = None
        if stride != 1 or channels[0] != channels[-1]:
            shortcut = nn.Conv2d(channels[0], channels[-1], 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels[-1]))

    def forward(self, x):
        y = x
        for number in range(1, self.count + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            y = y.relu() if number < self.count else y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class Torchvision(nn.Module):
    def __init__(self, stages, width, bottleneck):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages, channels = len(stages), width
        for stage, count in enumerate(stages):
            inner, blocks = width * 2**stage, []
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                if bottleneck:
                    blocks.append(Block([channels, inner, inner, 4 * inner], [1, 3, 1], stride))
                else:
                    blocks.append(Block([channels, inner, inner], [3, 3], stride))
                channels = 4 * inner if bottleneck else inner
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        features = x.mean((2, 3))
        return self.fc(features), features


class Transformers(nn.Module):
    """Logits and features of transformers' classes, with and without a head."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        backbone = getattr(self.model, "resnet", self.model)
        features = backbone(x).pooler_output.flatten(1)
        return (None if backbone is self.model else self.model.classifier(features)), features


def randomise(model, generator):
    """Weights and statistics of which none is 0 or 1, where mistakes would not show."""

    def uniform(tensor, low, high):
        return low + (high - low) * torch.rand(tensor.shape, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(uniform(module.weight, 0.5, 1.5))
                module.bias.copy_(uniform(module.bias, -0.3, 0.3))
                module.running_mean.copy_(uniform(module.running_mean, -0.3, 0.3))
                module.running_var.copy_(uniform(module.running_var, 0.4, 1.6))
                module.num_batches_tracked.fill_(11)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                spread = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(spread / fan_in**0.5)
                if module.bias is not None:
                    module.bias.copy_(uniform(module.bias, -0.5, 0.5))


def expected(model, stem, images):
    mean, std = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()
    x = ((torch.from_numpy(images).double() / 255 - mean) / std).permute(0, 3, 1, 2)
    out = {"images": images}
    # The statistics of the original stay.
    model = copy.deepcopy(model).double()
    with torch.no_grad():
        logits, out["features"] = model.eval()(x)
        train_logits, out["train_features"] = model.train()(x)
    if logits is not None:
        out["logits"], out["train_logits"] = logits, train_logits
    norm = dict(model.named_modules())[stem]
    out["train_mean"], out["train_var"] = norm.running_mean, norm.running_var
    out["train_count"] = np.int64(len(images) * -(-HEIGHT // 2) * -(-WIDTH // 2))
    return {key: np.asarray(value) for key, value in out.items()}


def torchvision(name, seed, **sizes):
    generator = torch.Generator().manual_seed(seed)
    model = Torchvision(**sizes)
    randomise(model, generator)
    folder = DATA / name
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "weights.safetensors", metadata={"format": "pt"})
    write_expected(folder, model, "bn1", seed)


def hugging_face(name, seed, model_class, **config):
    generator = torch.Generator().manual_seed(seed)
    model = model_class(transformers.ResNetConfig(num_labels=CLASSES, **config))
    randomise(model, generator)
    folder = DATA / name
    model.save_pretrained(folder)
    prefix = "model.resnet." if hasattr(model, "resnet") else "model."
    write_expected(folder, Transformers(model), f"{prefix}embedder.embedder.normalization", seed)


def write_expected(folder, model, stem, seed):
    images = np.random.default_rng(seed).integers(0, 256, (3, HEIGHT, WIDTH, 3), np.uint8)
    np.savez_compressed(folder / "expected.npz", **expected(model, stem, images))
    made_with = {"torch": torch.__version__, "transformers": transformers.__version__}
    made_with["safetensors"] = safetensors.__version__
    (folder / "versions.json").write_text(json.dumps(made_with, indent=1) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    torchvision("resnet-torchvision-basic", 1, stages=(1, 1, 1, 1), width=4, bottleneck=False)
    torchvision("resnet-torchvision-bottleneck", 2, stages=(1, 2, 1), width=4, bottleneck=True)
    classifier, backbone = transformers.ResNetForImageClassification, transformers.ResNetModel
    basic = {"embedding_size": 4, "hidden_sizes": [4, 8, 16], "depths": [2, 1, 1], "layer_type": "basic"}
    hugging_face("resnet-transformers-basic", 3, classifier, **basic)
    bottleneck = {"embedding_size": 8, "hidden_sizes": [32, 64], "depths": [1, 2], "layer_type": "bottleneck"}
    hugging_face("resnet-transformers-bottleneck", 4, classifier, **bottleneck)
    hugging_face("resnet-transformers-backbone", 5, backbone, **basic)
