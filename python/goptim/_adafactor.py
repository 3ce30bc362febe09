"""Adafactor under the name of torch.optim's module. It is defined in goptim.adafactor."""

from torch.optim._adafactor import adafactor as adafactor

from goptim.adafactor import Adafactor as Adafactor
