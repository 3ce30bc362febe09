from torch.optim.optimizer import *  # noqa: F403
