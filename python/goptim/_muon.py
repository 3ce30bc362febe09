"""Muon under the name of torch.optim's module. It is defined in goptim.muon."""

from torch.optim._muon import muon as muon

from goptim.muon import Muon as Muon
