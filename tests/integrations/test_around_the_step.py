"""Clipping and averages of accelerate, Lightning, transformers and timm run in Go under a patch."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from stacks import load
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import goptim
from goptim import _lists
from goptim.testing import assert_bit_equal, ieee_sqrt

sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def compared(monkeypatch):
    """Runs train() with torch, then with a patch, and returns the kinds that ran in Go."""

    def run(train):
        rows = {}
        monkeypatch.setattr(_lists, "watch", lambda kind, n: rows.update({kind: rows.get(kind, 0) + n}))
        with ieee_sqrt():
            torch.manual_seed(0)
            expected = train()
            assert not rows
            with goptim.patch():
                torch.manual_seed(0)
                assert_bit_equal(train(), expected)
        return rows

    return run


def make_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def make_loader():
    of = torch.Generator().manual_seed(2)
    x = torch.randn(24, 10, generator=of)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=4)


@pytest.mark.parametrize("how", ["norm", "value"])
def test_accelerate(compared, how):
    accelerate = load("accelerate")
    state = load("accelerate.state")

    def train():
        state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(cpu=True)
        model = make_net()
        model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters()), make_loader())
        for x, y in loader:
            accelerator.backward(nn.functional.cross_entropy(model(x), y))
            if how == "norm":
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            else:
                accelerator.clip_grad_value_(model.parameters(), 0.01)
            optimizer.step()
            optimizer.zero_grad()
        return model.state_dict()

    try:
        assert compared(train) == {"ClipGradNorm" if how == "norm" else "Clamp": 36}
    finally:
        state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("how", ["norm", "value", "average", "moving average"])
@pytest.mark.filterwarnings("ignore")
def test_lightning(compared, tmp_path, how):
    lightning = load("lightning")
    callbacks = load("lightning.pytorch.callbacks.weight_averaging")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = make_net()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def train():
        options = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": how} if "average" not in how else {}
        average = callbacks.WeightAveraging() if how == "average" else callbacks.EMAWeightAveraging(decay=0.9)
        module = Module()
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[average] if "average" in how else [],
            **options,
        )
        trainer.fit(module, make_loader())
        return module.state_dict()

    expected = {"norm": {"ClipGradNorm": 36}, "value": {"Clamp": 36}}
    kind = "SWA" if how == "average" else "MulAdd"  # of the six parameters and two of three buffers
    assert compared(train) == expected.get(how, {"Copy": 8, kind: 40})


def test_transformers(compared, tmp_path):
    transformers = load("transformers")

    def train():
        config = transformers.BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        torch.manual_seed(1)
        words = torch.randint(50, (12, 7), generator=torch.Generator().manual_seed(2))
        trainer = transformers.Trainer(
            model=transformers.BertForSequenceClassification(config),
            args=transformers.TrainingArguments(
                output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, seed=0, max_steps=3,
                per_device_train_batch_size=4, save_strategy="no", learning_rate=1e-3, optim="adamw_torch",
            ),
            train_dataset=[{"input_ids": row, "labels": int(row[0] > 25)} for row in words],
        )  # fmt: skip
        trainer.train()
        return trainer.model.state_dict()

    rows = compared(train)
    assert rows["ClipGradNorm"] >= 3 * 20
    assert set(rows) == {"ClipGradNorm"}


@pytest.mark.parametrize("mode", ["norm", "value"])
def test_timm(compared, mode):
    utils = load("timm.utils")

    def train():
        model = make_net()
        optimizer = torch.optim.AdamW(model.parameters())
        average = utils.ModelEmaV3(model, decay=0.9, use_warmup=True)
        for step, (x, y) in enumerate(make_loader()):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            utils.dispatch_clip_grad(model.parameters(), 0.01, mode=mode)
            optimizer.step()
            average.update(model, step)
        return model.state_dict(), average.module.state_dict()

    assert compared(train) == {"ClipGradNorm" if mode == "norm" else "Clamp": 36, "Lerp": 6 * 8}


def test_timm_with_bfloat16_and_other_devices(compared):
    utils = load("timm.utils")

    def train():
        model = make_net()
        torch.optim.SGD(model.parameters())
        found = []
        for kwargs in ({"dtype": torch.bfloat16}, {"foreach": False}, {"exclude_buffers": True}):
            average = utils.ModelEmaV3(copy.deepcopy(model), decay=0.9, **kwargs)
            for _ in range(2):
                average.update(model)
            found.append(average.module.state_dict())
        return found

    assert compared(train) == {"Lerp": 12}
