"""transformers' Trainer."""

import pickle
import shutil

import pytest
import torch
from stacks import DOCS, execute, load, snippets, state_of

import goptim
from goptim.testing import assert_bit_equal

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
    return trainer.model.state_dict(), state_of(trainer.optimizer), trainer.lr_scheduler.state_dict()["_last_lr"]


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


@pytest.mark.parametrize("name", ["schedule_free_adamw", "schedule_free_sgd", "schedule_free_radam"])
def test_optimizers_of_other_packages_by_name(both, name):
    """With a patch, goptim's classes are constructed. They are the packages' classes too, and can be pickled."""
    load("schedulefree")

    def run(optim, folder):
        with optim.patch():
            arguments = make_arguments(folder, optim=name, warmup_steps=0 if "radam" in name else 2)
            trainer = transformers.Trainer(make_model(), arguments, train_dataset=make_dataset())
            trainer.train()
        opt = trainer.optimizer.optimizer
        theirs = type(opt) if optim is not goptim else type(opt).__bases__[1]
        assert theirs.__module__.startswith("schedulefree.")
        if optim is goptim:
            assert isinstance(opt, getattr(goptim, theirs.__name__))
            assert type(pickle.loads(pickle.dumps(opt))) is type(opt)
        return outcome(trainer)

    both(run)


def train_by_name(name, folder):
    trainer = transformers.Trainer(make_model(), make_arguments(folder, optim=name), train_dataset=make_dataset())
    trainer.train()
    return trainer


@pytest.mark.parametrize(("name", "title"), [("ademamix", "AdEMAMix"), ("lion_32bit", "Lion")])
def test_optimizers_of_bitsandbytes_by_name(both, name, title):
    theirs = getattr(load("bitsandbytes.optim"), title)

    def run(optim, folder):
        with optim.patch():
            trainer = train_by_name(name, folder)
        opt = trainer.optimizer.optimizer
        assert isinstance(opt, theirs)
        if optim is goptim:
            assert isinstance(opt, getattr(goptim.bitsandbytes, title))
            assert type(pickle.loads(pickle.dumps(opt))) is type(opt)
            saved = opt.state_dict()
            other = theirs([p for group in opt.param_groups for p in group["params"]])
            other.param_groups = [{**group} for group in opt.param_groups]
            other.load_state_dict(saved)
            assert_bit_equal(other.state_dict()["state"], saved["state"])
        return outcome(trainer)

    both(run)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_stable_adamw_by_name(both, monkeypatch, schedule):
    monkeypatch.setattr(load("optimi.utils"), "HAS_TRITON", False)  # which torch-optimi uses on CPUs too
    optimi = load("optimi")

    def run(optim, folder):
        with optim.patch():
            arguments = make_arguments(
                folder, optim="stable_adamw", lr_scheduler_type=schedule, weight_decay=0.1, max_grad_norm=0.5
            )
            trainer = transformers.Trainer(make_model(), arguments, train_dataset=make_dataset())
            trainer.train()
        opt = trainer.optimizer.optimizer
        assert isinstance(opt, optimi.StableAdamW)
        assert isinstance(opt, goptim.StableAdamW) == (optim is goptim)
        if optim is goptim:
            assert type(pickle.loads(pickle.dumps(opt))) is type(opt)
        return outcome(trainer)

    both(run)


@pytest.mark.parametrize("name", ["ademamix_8bit", "paged_ademamix_32bit", "lion_8bit", "paged_lion_8bit"])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported")
def test_other_optimizers_of_bitsandbytes_stay(name, tmp_path):
    load("bitsandbytes.optim")
    with goptim.patch():
        opt = train_by_name(name, tmp_path).optimizer.optimizer
    assert type(opt).__module__.startswith("bitsandbytes.")
    assert not isinstance(opt, (goptim.bitsandbytes.AdEMAMix, goptim.bitsandbytes.Lion))


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


NAMES = {
    "adamw_torch": "AdamW",
    "adamw_torch_fused": "AdamW",
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
    "schedule_free_adamw": "AdamWScheduleFree",
    "schedule_free_sgd": "SGDScheduleFree",
    "schedule_free_radam": "RAdamScheduleFree",
    "stable_adamw": "StableAdamW",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_under_a_patch(name, tmp_path):
    """The names in the recipe, of which each creates an optimizer that runs in Go."""
    if name.startswith("schedule_free"):
        load("schedulefree")
    if name == "stable_adamw":
        load("optimi")
    with goptim.patch():
        trainer = transformers.Trainer(make_model(), make_arguments(tmp_path, optim=name), train_dataset=make_dataset())
        trainer.train()
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate wraps it
    assert isinstance(optimizer, getattr(goptim, NAMES[name]))
    assert {row.to for row in goptim.explain(optimizer)} == {"go"}
    assert f"`{name}`" in (DOCS / "recipes/transformers.md").read_text()


@snippets("transformers.md")
def test_recipe(both, code):
    def run(optim, folder):
        names = execute(code, optim, model=make_model(), dataset=make_dataset(), args=make_arguments(folder))
        return outcome(names.trainer)

    both(run)
