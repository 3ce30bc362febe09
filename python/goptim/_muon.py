"""Muon, where torch.optim has it; it is defined in goptim.muon."""

from torch.optim._muon import muon as muon

from goptim.muon import Muon as Muon
