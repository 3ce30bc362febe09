"""Training in 16 bits with other packages: programs that construct torch's optimizers, under a patch.

The oracle is torch's fused kernel, which rounds as goptim does, on one thread and for parameters of whole vectors; and
for optimizers without fused=True, torch's for-loop on float32 copies, which are rounded after each step.
"""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import test_accelerate
import test_lightning
import torch
from stacks import load, snippets_of
from test_transformers import make_arguments, outcome
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import goptim
from goptim.testing import assert_bit_equal

transformers = load("transformers")

fresh_state, quiet = test_accelerate.fresh_state, test_lightning.quiet
BF16 = torch.bfloat16
VECTOR = 32  # elements; torch's fused kernels round those after the last whole vector in another way


def widened(name):
    """A class that constructs torch's optimizer, which then steps float32 copies of parameters and states."""

    def convert(optimizer, dtype):
        for p in [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]:
            g, p.grad = p.grad.to(dtype), None
            p.data = p.data.to(dtype)
            p.grad = g
            state = optimizer.state.get(p, {})  # SGD has none without momentum
            state.update({key: t.to(dtype) for key, t in state.items() if torch.is_tensor(t) and t.dim()})

    class Widened(torch.optim.Optimizer):
        def __new__(cls, params, **keywords):
            optimizer = getattr(torch.optim, name)(params, **keywords)
            optimizer.register_step_pre_hook(lambda optimizer, *_: convert(optimizer, torch.float32))
            optimizer.register_step_post_hook(lambda optimizer, *_: convert(optimizer, BF16))
            return optimizer

    return Widened


def make_model():
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(1)
    model = transformers.GPT2LMHeadModel(config).to(BF16)
    assert all(p.numel() % VECTOR == 0 for p in model.parameters())
    return model


def make_texts():
    rows = torch.randint(64, (24, 8), generator=torch.Generator().manual_seed(2))
    return [{"input_ids": row, "labels": row} for row in rows]


def assert_in_go(optimizer, dtype):
    rows = goptim.explain(optimizer)
    assert {row.to for row in rows} == {"go"}, str(rows)
    assert {row.dtype for row in rows} == {dtype}


def train(optim, folder, chosen=None, named="adamw_torch_fused", resume=None, **options):
    """Trainer constructs the optimizer, of torch or, under a patch, of goptim."""
    ours = optim is goptim
    with optim.patch():
        trainer = transformers.Trainer(
            make_model(),
            make_arguments(folder, optim=named, **options),
            train_dataset=make_texts(),
            optimizer_cls_and_kwargs=chosen,
        )
        trainer.train(resume_from_checkpoint=resume)
    optimizer = trainer.optimizer.optimizer
    assert trainer.state.global_step == 6
    assert type(optimizer).__module__.startswith("goptim") == ours
    tensors = [*trainer.model.parameters(), *(t for s in optimizer.state.values() for t in s.values() if t.dim())]
    assert {t.dtype for t in tensors} == {BF16}
    if ours:
        assert_in_go(optimizer, BF16)
    return outcome(trainer)


def test_the_default_of_trainer(tmp_path):
    assert make_arguments(tmp_path).optim == "adamw_torch_fused"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1, "gradient_accumulation_steps": 2, "max_grad_norm": 0.1},
        {"lr_scheduler_type": "cosine", "bf16": True},
        {"chosen": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "fused": True})},
        {"chosen": (torch.optim.Adagrad, {"lr": 1e-2, "fused": True})},
    ],
    ids=str,
)
def test_trainer(both, options):
    both(train, **options)


@pytest.mark.parametrize(
    ("name", "cls"), [("adamw_torch", "AdamW"), ("sgd", "SGD"), ("rmsprop", "RMSprop"), ("adagrad", "Adagrad")]
)
def test_trainer_without_fused(both, name, cls):
    """Names with which torch's optimizer would round after every operation."""

    def run(optim, folder):
        if optim is goptim:
            return train(optim, folder, named=name)
        keywords = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8} if cls == "AdamW" else {"lr": 1e-3}
        return train(optim, folder, chosen=(widened(cls), keywords))

    both(run)


def test_trainer_resumes(both):
    """A resumed run has the same result as an uninterrupted one."""
    saves = {"save_strategy": "steps", "save_steps": 3}

    def run(optim, folder):
        whole = train(optim, folder, **saves)
        return whole, train(optim, folder / "again", resume=str(folder / "checkpoint-3"), **saves)

    assert_bit_equal(*reversed(both(run)))


@pytest.mark.parametrize(
    "keywords",
    [
        {"rounding": "stochastic", "seed": 7},
        {"rounding": "kahan"},
        {"master_weights": True},
        {"state_dtype": torch.float32},
    ],
    ids=str,
)
def test_trainer_resumes_with_other_roundings(keywords, tmp_path, threads):
    """A resumed run has the same result as an uninterrupted one, with states in their types."""

    def run(folder, resume=None):
        trainer = transformers.Trainer(
            make_model(),
            make_arguments(folder, save_strategy="steps", save_steps=3),
            train_dataset=make_texts(),
            optimizer_cls_and_kwargs=(goptim.AdamW, {"lr": 1e-3} | keywords),
        )
        trainer.train(resume_from_checkpoint=resume)
        optimizer = trainer.optimizer.optimizer
        assert_in_go(optimizer, BF16)
        return trainer.model.state_dict(), optimizer.state_dict()["state"]

    whole = run(tmp_path)
    assert_bit_equal(run(tmp_path / "again", resume=str(tmp_path / "checkpoint-3")), whole)


def test_trainer_under_run(tmp_path):
    """An unchanged program, and the report."""
    program = tmp_path / "train.py"
    program.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]!r}
        import torch
        from test_half import make_texts, make_model
        from transformers import Trainer, TrainingArguments

        args = TrainingArguments(
            {str(tmp_path)!r}, max_steps=3, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no"
        )
        Trainer(make_model(), args, train_dataset=make_texts()).train()
        """)
    )
    command = [sys.executable, "-m", "goptim", "run", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    n = len(list(make_model().parameters()))
    assert f"goptim: AdamW: 1 optimizer, 3 steps; in Go: {n} parameters ({3 * n} updates)\n" in done.stderr


@pytest.mark.parametrize("code", [code for code in snippets_of("half.md") if "transformers" in code])
def test_snippets_with_trainer(code, tmp_path, threads):
    names = {"model": make_model(), "args": make_arguments(tmp_path), "dataset": make_texts()}
    exec(code, names)
    assert_in_go(names["trainer"].optimizer.optimizer, BF16)


@pytest.mark.parametrize("code", [code for code in snippets_of("half.md") if "accelerate" in code])
def test_snippets_with_accelerator(code, threads):
    names = {"model": classifier(), "loader": batches(torch.float32), "loss_of": nn.functional.cross_entropy}
    exec(code, names)
    assert_in_go(names["optimizer"].optimizer, torch.float32)


def classifier():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 32))


def batches(dtype):
    x = torch.randn(24, 8, generator=torch.Generator().manual_seed(2))
    return DataLoader(TensorDataset(x.to(dtype), x.argmax(1)), batch_size=4, shuffle=True)


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("AdamW", {"lr": 1e-2, "fused": True}),
        ("SGD", {"lr": 1e-2, "momentum": 0.9, "fused": True}),
        ("NAdam", {"lr": 1e-2}),
    ],
)
def test_accelerator(both, name, keywords, dtype):
    """mixed_precision="bf16" keeps float32 parameters, and a bfloat16 model has bfloat16 ones."""

    def run(optim, folder):
        accelerator = test_accelerate.make_accelerator(mixed_precision="bf16")
        with optim.patch():
            fused = "fused" in keywords
            cls = getattr(torch.optim, name) if optim is goptim or fused or dtype != BF16 else widened(name)
            model = classifier().to(dtype)
            # torch's fused Adam has other results than its for-loop for float32.
            options = {key: value for key, value in keywords.items() if key != "fused" or dtype == BF16}
            optimizer = cls(model.parameters(), **options)
            model, optimizer, loader = accelerator.prepare(model, optimizer, batches(dtype))
            for x, y in loader:
                accelerator.backward(nn.functional.cross_entropy(model(x), y))
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
        assert {p.dtype for p in model.parameters()} == {dtype}
        if optim is goptim:
            assert_in_go(optimizer.optimizer, dtype)
        return test_accelerate.outcome(model, optimizer)

    both(run)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", BF16), ("bf16-mixed", torch.float32)])
def test_lightning_precision(both, precision, dtype):
    def run(optim, folder):
        options = {"fused": True} if dtype == BF16 else {}
        module = test_lightning.Module(lambda net: torch.optim.AdamW(net.parameters(), lr=1e-2, **options))
        module.net = classifier()
        loader = DataLoader(TensorDataset(*batches(torch.float32).dataset.tensors), batch_size=4)
        with optim.patch():
            trainer = test_lightning.make_trainer(folder, precision=precision)
            trainer.fit(module, loader)
        assert {p.dtype for p in module.parameters()} == {dtype}
        if optim is goptim:
            assert_in_go(trainer.optimizers[0], dtype)
        return module.state_dict(), trainer.optimizers[0].state_dict(), module.losses

    both(run)
