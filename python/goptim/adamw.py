"""AdamW under the name of torch.optim's module. It is defined in goptim.adam."""

from torch.optim.adamw import adamw as adamw

from goptim.adam import AdamW as AdamW
