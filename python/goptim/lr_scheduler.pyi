from torch.optim.lr_scheduler import *  # noqa: F403
