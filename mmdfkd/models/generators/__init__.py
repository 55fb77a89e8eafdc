"""Generators of images, for sources that train one."""

from .base import Generator
from .conv import ConvGenerator
from .transformer import TransformerGenerator

__all__ = ['ConvGenerator', 'Generator', 'TransformerGenerator']
