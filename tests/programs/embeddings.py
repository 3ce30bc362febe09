"""Learns embeddings of items from sequences, with checkpoints. Run it again to continue."""

import argparse
from pathlib import Path

import torch
from torch import nn, optim
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR


class SkipGram(nn.Module):
    def __init__(self, items, size):
        super().__init__()
        self.inner = nn.Embedding(items, size, sparse=True)
        self.outer = nn.Embedding(items, size, sparse=True)
        self.head = nn.Linear(size, size)

    def forward(self, centre, context):
        return (self.head(self.inner(centre)) * self.outer(context)).sum(-1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--until", type=int, default=20)
    parser.add_argument("--items", type=int, default=200)
    args = parser.parse_args()

    torch.manual_seed(0)
    model = SkipGram(args.items, 16)
    sparse = optim.SparseAdam([*model.inner.parameters(), *model.outer.parameters()], lr=0.01)
    dense = optim.Adam(model.head.parameters(), lr=0.01, amsgrad=True)
    schedulers = [CosineAnnealingLR(sparse, 40), LambdaLR(dense, lambda i: 0.95**i)]
    everything = {"model": model, "sparse": sparse, "dense": dense, "cosine": schedulers[0], "lambda": schedulers[1]}
    begin = 0
    if args.checkpoint.exists():
        saved = torch.load(args.checkpoint)
        for name, thing in everything.items():
            thing.load_state_dict(saved[name])
        begin = saved["step"]
        print("resumes at", begin)
    for i in range(begin, args.until):
        random = torch.Generator().manual_seed(i)
        centre = torch.randint(args.items, (32,), generator=random)
        near = (centre + torch.randint(1, 4, (32,), generator=random)) % args.items
        far = torch.randint(args.items, (32,), generator=random)
        scores = torch.cat([model(centre, near), -model(centre, far)])
        loss = -nn.functional.logsigmoid(scores).mean()
        for optimizer in (sparse, dense):
            optimizer.zero_grad()
        loss.backward()
        for optimizer in (sparse, dense):
            optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        print(i, repr(loss.item()), sparse.param_groups[0]["lr"])
    saved = {name: thing.state_dict() for name, thing in everything.items()}
    torch.save(saved | {"step": args.until}, args.checkpoint)


if __name__ == "__main__":
    main()
