"""skorch: nets as scikit-learn estimators, with an optimizer's class and arguments."""

import pickle

import numpy as np
import pytest
import torch
from problems import sums_in_our_order
from stacks import execute, load, snippets
from torch import nn

import goptim
from goptim.testing import assert_bit_equal, ieee_sqrt

skorch = load("skorch")
callbacks = load("skorch.callbacks")
datasets = load("sklearn.datasets")
selection = load("sklearn.model_selection")
base = load("sklearn.base")


class Net(nn.Module):
    def __init__(self, width=16, dropout=0.2):
        super().__init__()
        torch.manual_seed(1)
        self.hidden = nn.Linear(64, width)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(width, 10)

    def forward(self, x):
        return self.out(self.drop(torch.relu(self.hidden(x))))


def digits(n=160):
    x, y = datasets.load_digits(return_X_y=True)
    return x[:n].astype(np.float32) / 16, y[:n].astype(np.int64)


def make_net(optimizer, **options):
    options = {"lr": 1e-2, "max_epochs": 2, "batch_size": 32, "train_split": None} | options
    return skorch.NeuralNetClassifier(Net, optimizer=optimizer, criterion=nn.CrossEntropyLoss, verbose=0, **options)


def outcome(net):
    return net.module_.state_dict(), net.optimizer_.state_dict(), net.history[:, "train_loss"]


def train(optim, folder, name="AdamW", **options):
    torch.manual_seed(3)
    return outcome(make_net(getattr(optim, name), **options).fit(*digits()))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AdamW", {"optimizer__weight_decay": 0.1, "optimizer__amsgrad": True}),
        ("SGD", {"optimizer__momentum": 0.9, "optimizer__nesterov": True}),
        ("RMSprop", {"lr": 1e-3, "optimizer__centered": True}),
        ("Adafactor", {}),
        ("Adadelta", {"lr": 1.0}),
        ("Rprop", {"batch_size": -1}),
    ],
)
def test_classes(both, name, options):
    both(train, name=name, **options)


def test_parameter_groups(both):
    groups = [("hidden.*", {"lr": 1e-3, "weight_decay": 0.1}), ("*.bias", {"weight_decay": 0.0})]
    _, state, _ = both(train, optimizer__param_groups=groups)
    assert [(len(group["params"]), group["lr"]) for group in state["param_groups"]] == [(2, 1e-3), (1, 1e-2), (1, 1e-2)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: callbacks.LRScheduler(
            torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=20, step_every="batch"
        ),
        lambda: callbacks.LRScheduler(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
        lambda: callbacks.LRScheduler("ReduceLROnPlateau", monitor="train_loss", patience=0, mode="max"),
        lambda: callbacks.GradientNormClipping(0.1),
        lambda: callbacks.Freezer("hidden.*"),
    ],
    ids=["OneCycleLR", "StepLR", "ReduceLROnPlateau", "clipping", "freezer"],
)
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_callbacks(both, name, make):
    with ieee_sqrt():
        plain = train(torch.optim, None, name=name, max_epochs=4)
    changed = both(lambda optim, folder: train(optim, folder, name=name, max_epochs=4, callbacks=[make()]))
    assert not torch.equal(changed[0]["hidden.weight"], plain[0]["hidden.weight"])


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs(both, search):
    """skorch passes its closure to every optimizer."""
    options = {"lr": 0.5, "batch_size": -1, "optimizer__line_search_fn": search, "optimizer__max_iter": 4}
    with sums_in_our_order():
        both(train, name="LBFGS", max_epochs=3, **options)


def test_cross_validation(both):
    def run(optim, folder):
        torch.manual_seed(3)
        x, y = digits()
        net = make_net(optim.AdamW)
        folds = selection.KFold(3)
        scores = selection.cross_val_score(net, x, y, cv=folds, scoring="neg_log_loss")
        probabilities = selection.cross_val_predict(net, x, y, cv=folds, method="predict_proba")
        return scores.tolist(), torch.from_numpy(probabilities)

    both(run)


def test_grid_search(both):
    def run(optim, folder):
        torch.manual_seed(3)
        grid = {"optimizer__lr": [1e-3, 1e-2, 1e-1], "optimizer__momentum": [0.0, 0.9]}
        search = selection.GridSearchCV(make_net(optim.SGD), grid, cv=2, scoring="neg_log_loss")
        search.fit(*digits())
        scores = search.cv_results_["mean_test_score"]
        assert len(set(scores)) == 6
        return scores.tolist(), search.best_params_, outcome(search.best_estimator_)

    both(run)


def score_where_it_trained(net, x, y):
    if isinstance(net.optimizer_, goptim.SGD):
        assert all(row.to == "go" for row in goptim.explain(net.optimizer_))
    return -float(nn.functional.cross_entropy(net.forward(x), torch.from_numpy(y)))


def test_jobs(both):
    """Only SGD, because the processes that scikit-learn starts use the square roots of the installed torch."""

    def run(optim, folder):
        net = make_net(optim.SGD, optimizer__momentum=0.9, module__dropout=0.0)
        scores = []
        for jobs in (1, 2):
            search = selection.GridSearchCV(
                net,
                {"optimizer__lr": [1e-2, 1e-1]},
                cv=2,
                scoring=score_where_it_trained,
                n_jobs=jobs,
                refit=False,
                error_score="raise",
            )
            scores.append(search.fit(*digits()).cv_results_["mean_test_score"].tolist())
        return scores

    alone, beside = both(run)
    assert_bit_equal(beside, alone)


def test_grid_of_optimizers(both):
    def run(optim, folder):
        torch.manual_seed(3)
        grid = {"optimizer": [optim.SGD, optim.AdamW, optim.Adagrad]}
        search = selection.GridSearchCV(make_net(optim.SGD), grid, cv=2, scoring="neg_log_loss").fit(*digits())
        return search.cv_results_["mean_test_score"].tolist(), outcome(search.best_estimator_)

    both(run)


def test_clone(both):
    def run(optim, folder):
        net = make_net(optim.Adam, optimizer__betas=(0.8, 0.99))
        torch.manual_seed(3)
        net.fit(*digits())
        cloned = base.clone(net)
        assert cloned.optimizer is optim.Adam
        torch.manual_seed(3)
        cloned.fit(*digits())
        assert_bit_equal(outcome(cloned), outcome(net))
        return outcome(cloned)

    both(run)


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_learning_rate_of_a_net_that_has_trained(both, name):
    def run(optim, folder):
        net = make_net(getattr(optim, name)).fit(*digits())
        net.set_params(lr=1e-3, optimizer__weight_decay=0.1)
        return outcome(net.partial_fit(*digits()))

    both(run)


@pytest.mark.parametrize(("name", "options"), [("AdamW", {}), ("SGD", {"optimizer__momentum": 0.9}), ("Adafactor", {})])
@pytest.mark.parametrize("by", ["pickle", "files"])
def test_resume(both, name, options, by):
    """A saved and loaded net continues like the original."""

    def run(optim, folder):
        net = make_net(getattr(optim, name), **options).fit(*digits())
        if by == "pickle":
            again = pickle.loads(pickle.dumps(net))
        else:
            files = {f"f_{part}": folder / part for part in ("params", "optimizer", "history")}
            net.save_params(**files)
            again = make_net(getattr(optim, name), **options).initialize()
            again.load_params(**files)
        results = []
        for one in (net, again):
            torch.manual_seed(4)
            results.append(outcome(one.partial_fit(*digits())))
        return results

    whole, resumed = both(run)
    assert_bit_equal(resumed, whole)


@pytest.mark.parametrize("optim", [torch.optim, goptim], ids=["torch", "goptim"])
@pytest.mark.parametrize("name", ["AdamW", "Adafactor"])
def test_a_net_of_one_continues_with_the_other(both, tmp_path, optim, name):
    with ieee_sqrt():
        torch.manual_seed(3)
        saved = make_net(getattr(optim, name)).fit(*digits())
        files = {f"f_{part}": tmp_path / part for part in ("params", "optimizer", "history")}
        saved.save_params(**files)
        torch.manual_seed(4)
        whole = outcome(saved.partial_fit(*digits()))

    def run(optim, folder):
        net = make_net(getattr(optim, name)).initialize()
        net.load_params(**files)
        torch.manual_seed(4)
        return outcome(net.partial_fit(*digits()))

    assert_bit_equal(both(run), whole)


@snippets("skorch.md")
def test_recipe(both, code):
    def run(optim, folder):
        torch.manual_seed(3)
        x, y = digits()
        after = execute(code, optim, Net=Net, x=x, y=y, folder=folder)
        nets = [one for one in vars(after).values() if isinstance(one, skorch.NeuralNetClassifier)]
        return [outcome(net) for net in nets if hasattr(net, "optimizer_")]

    assert both(run)
