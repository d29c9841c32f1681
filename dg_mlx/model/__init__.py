"""The network: what is computed, in MLX."""

from .cache import Cache
from .diffusion import DiffusionGemma
from .masks import VisionAttention
from .media import ImagePatches, Media

__all__ = ["Cache", "DiffusionGemma", "ImagePatches", "Media", "VisionAttention"]
