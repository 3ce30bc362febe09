"""transformers' Trainer."""

import shutil

import pytest
import torch
from stacks import execute, load, snippets

load("accelerate")
transformers = load("transformers")
with_rates = load("transformers.optimization")
peft = load("peft")


def make_model(**options):
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, **options
    )
    torch.manual_seed(1)
    return transformers.BertForSequenceClassification(config)


def make_dataset(n=24):
    of = torch.Generator().manual_seed(2)
    words = torch.randint(50, (n, 7), generator=of)
    return [{"input_ids": row, "labels": int(row[0] > 25)} for row in words]


def make_arguments(folder, **options):
    options = {"max_steps": 6, "per_device_train_batch_size": 4, "save_strategy": "no", "learning_rate": 1e-3} | options
    return transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, seed=0, **options
    )


def outcome(trainer):
    return trainer.model.state_dict(), trainer.optimizer.state_dict(), trainer.lr_scheduler.state_dict()["_last_lr"]


def train(optim, folder, name="AdamW", keywords=None, resume=None, model=None, **options):
    trainer = transformers.Trainer(
        model=model or make_model(),
        args=make_arguments(folder, **options),
        train_dataset=make_dataset(),
        optimizer_cls_and_kwargs=(getattr(optim, name), keywords or {"lr": 1e-3}),
    )
    trainer.train(resume_from_checkpoint=resume)
    assert trainer.state.global_step == 6
    return outcome(trainer)


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("AdamW", {"lr": 1e-3, "betas": (0.9, 0.98), "amsgrad": True}),
        ("SGD", {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
        ("RMSprop", {"lr": 1e-3}),
        ("Adagrad", {"lr": 1e-2}),
        ("NAdam", {"lr": 1e-3}),
    ],
)
def test_optimizer_cls_and_kwargs(both, name, keywords):
    both(train, name=name, keywords=keywords, weight_decay=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2},
        {"max_grad_norm": 0.1},
        {"bf16": True},
        {"gradient_accumulation_steps": 3, "max_grad_norm": 0.1, "bf16": True, "lr_scheduler_type": "cosine"},
    ],
    ids=str,
)
def test_arguments(both, options):
    both(train, **options)


def test_optimizers(both):
    def run(optim, folder):
        model = make_model()
        optimizer = optim.AdamW(model.parameters(), lr=1e-3)
        scheduler = optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=6)
        trainer = transformers.Trainer(
            model, make_arguments(folder), train_dataset=make_dataset(), optimizers=(optimizer, scheduler)
        )
        trainer.train()
        return outcome(trainer)

    both(run)


def test_a_run_of_torch_optim_by_name(both):
    """optim="adamw_torch" is Trainer's default. goptim's optimizer has the same arguments."""

    def run(optim, folder):
        if optim.AdamW is torch.optim.AdamW:
            trainer = transformers.Trainer(
                make_model(), make_arguments(folder, optim="adamw_torch"), train_dataset=make_dataset()
            )
            trainer.train()
            return outcome(trainer)
        return train(optim, folder, keywords={"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8})

    both(run)


def test_adafactor_by_name(both):
    def run(optim, folder):
        if optim.hf.Adafactor is transformers.Adafactor:
            trainer = transformers.Trainer(
                make_model(), make_arguments(folder, optim="adafactor"), train_dataset=make_dataset()
            )
            trainer.train()
            return outcome(trainer)
        keywords = {"lr": 1e-3, "scale_parameter": False, "relative_step": False}
        return train(optim.hf, folder, name="Adafactor", keywords=keywords)

    both(run)


def test_adafactor_schedule(both):
    def run(optim, folder):
        model = make_model()
        optimizer = optim.hf.Adafactor(model.parameters(), warmup_init=True)
        schedule = with_rates.AdafactorSchedule(optimizer)
        trainer = transformers.Trainer(
            model,
            make_arguments(folder, logging_steps=1),
            train_dataset=make_dataset(),
            optimizers=(optimizer, schedule),
        )
        trainer.train()
        rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
        assert len(rates) == 6
        return model.state_dict(), optimizer.state_dict(), [float(rate) for rate in rates]

    both(run)


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_resume(both, name):
    """A resumed run has the same result as an uninterrupted one."""
    keywords = {"lr": 1e-3} | ({"momentum": 0.9} if name == "SGD" else {})
    saves = {"name": name, "keywords": keywords, "save_strategy": "steps", "save_steps": 3}

    def run(optim, folder):
        whole = train(optim, folder, **saves)
        resumed = train(optim, folder / "again", resume=str(folder / "checkpoint-3"), **saves)
        return whole, resumed

    whole, resumed = both(run)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_a_checkpoint_of_torch_optim_continues_with_goptim(both, tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 3}
    train(torch.optim, tmp_path / "first", **saves)

    def run(optim, folder):
        checkpoint = shutil.copytree(tmp_path / "first" / "checkpoint-3", folder / "checkpoint-3")
        return train(optim, folder, resume=str(checkpoint), **saves)

    both(run)


def test_lora(both):
    def run(optim, folder):
        model = peft.get_peft_model(make_model(), peft.LoraConfig(task_type="SEQ_CLS", r=2, lora_dropout=0.1))
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        assert 0 < len(trained) < len(list(model.parameters()))
        return train(optim, folder, model=model)

    both(run)


@snippets("transformers.md")
def test_recipe(both, code):
    def run(optim, folder):
        names = execute(code, optim, model=make_model(), dataset=make_dataset(), args=make_arguments(folder))
        return outcome(names.trainer)

    both(run)
