"""Adafactor, where torch.optim has it; it is defined in goptim.adafactor."""

from torch.optim._adafactor import adafactor as adafactor

from goptim.adafactor import Adafactor as Adafactor
