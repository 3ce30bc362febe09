from torch.optim.swa_utils import *  # noqa: F403
