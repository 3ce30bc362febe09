"""AdamW, where torch.optim has it; it is defined in goptim.adam."""

from torch.optim.adamw import adamw as adamw

from goptim.adam import AdamW as AdamW
