"""Published weights for the modules of `disam_jax.dg.models`, and the tokenizer that goes with CLIP's.

load              a module from a folder, a file or a repository of Hugging Face
files             safetensors and config.json, never pickle
tensors           the format of safetensors
keymap            from the keys of a checkpoint to the variables of a module
clip_keys         CLIP's keys and sizes
vit_keys          ViT's
resnet_keys       ResNet's, as torchvision, timm and Hugging Face name them
transformer_keys  what the keys and sizes of CLIP and ViT share
tokenizer         texts to token ids, as CLIP reads them
"""

from disam_jax.dg.pretrained.load import from_pretrained

__all__ = ["from_pretrained"]
