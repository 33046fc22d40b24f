"""fit(): exact resume, schedule, averaging, and what happens when a loss explodes."""

import math
import re
import signal
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from cadiff.artifacts import read_json
from cadiff.blocks import clip_gradients, compiled_blocks
from cadiff.checkpoints import save_checkpoint
from cadiff.cli import _refused_by_disk
from cadiff.contrast.mae import FmriMae, FmriMaeConfig
from cadiff.contrast.transformer import Block
from cadiff.errors import ConfigError, DivergedError
from cadiff.feed import feed
from cadiff.runs import RunFolder
from cadiff.training import FitConfig, epoch_batches, fit, learning_rate_at, refuse_several, refuse_uneven

X = torch.randn(37, 5, generator=torch.Generator().manual_seed(1))
Y = X.sum(1, keepdim=True)


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def train(
    out: Path,
    *,
    kill_at: int | None = None,
    explode_at: int | None = None,
    resume: bool = False,
    scale: float = 1.0,
    **settings,
):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    values = {
        "steps": 10,
        "batch_size": 4,
        "checkpoint_every": 5,
        "log_every": 2,
        "learning_rate": 1e-2,
        **settings,
    }
    config = FitConfig(**values)
    run = RunFolder.open(out, stage="toy", config=config, resume=resume)
    indices = epoch_batches(len(X), config.batch_size, config.seed)

    def batches(step: int):
        if step == kill_at:
            raise Killed
        return X[indices(step)], Y[indices(step)] * (math.inf if step == explode_at else 1)

    def loss(batch, generator):
        x, y = batch
        noisy = x + 0.1 * torch.randn(x.shape, generator=generator)
        return {"loss": scale * (model(noisy) - y).square().mean()}

    fit(loss, {"model": model}, batches, config, run=run)
    return {name: value.clone() for name, value in model.state_dict().items()}, run


@pytest.mark.parametrize("settings", [{}, {"ema_decay": 0.9}, {"accumulate": 2, "warmup_steps": 3}])
def test_ten_steps_equal_five_and_a_kill_and_five(tmp_path, settings):
    whole, run = train(tmp_path / "whole", **settings)
    with pytest.raises(Killed):
        train(tmp_path / "cut", kill_at=7 * settings.get("accumulate", 1), **settings)
    resumed, other = train(tmp_path / "cut", resume=True, **settings)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert run.history() == other.history()


def test_a_seed_fixes_everything_and_another_seed_changes_it(tmp_path):
    first, _ = train(tmp_path / "a")
    again, _ = train(tmp_path / "b")
    other, _ = train(tmp_path / "c", seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_accumulated_small_batches_equal_one_large_batch(tmp_path):
    def final(out, batch_size, accumulate):
        weights = torch.zeros(5, 1, requires_grad=True)
        model = nn.Module()
        model.weight = nn.Parameter(weights.detach().clone())
        config = FitConfig(
            steps=3, batch_size=batch_size, accumulate=accumulate, learning_rate=0.1, clip_norm=None
        )
        indices = epoch_batches(len(X), batch_size, 0)
        run = RunFolder.open(out, stage="toy", config=config)
        fit(
            lambda batch, _: {"loss": (batch[0] @ model.weight - batch[1]).square().mean()},
            {"model": model},
            lambda step: (X[indices(step)], Y[indices(step)]),
            config,
            run=run,
        )
        return model.weight.detach()

    torch.testing.assert_close(final(tmp_path / "large", 12, 1), final(tmp_path / "small", 4, 3))


@pytest.mark.parametrize(
    ("settings", "why"),
    [({}, "there is no CUDA GPU"), ({"accumulate": 2}, "there is no CUDA GPU, accumulate=2")],
)
def test_a_graph_that_was_asked_for_and_cannot_be_is_named(tmp_path, settings, why):
    with pytest.warns(UserWarning, match=rf"fit.graph=true has no effect \(.*{why}\)"):
        train(tmp_path / "run", steps=1, graph=True, **settings)


def test_learning_rate_warms_up_then_follows_half_a_cosine():
    config = FitConfig(steps=110, warmup_steps=10, learning_rate=1.0, min_learning_rate=0.2)
    assert learning_rate_at(0, config) == pytest.approx(0.1)
    assert learning_rate_at(9, config) == pytest.approx(1.0)
    assert learning_rate_at(60, config) == pytest.approx(0.2 + 0.8 * 0.5)
    assert learning_rate_at(110, config) == pytest.approx(0.2)
    rates = [learning_rate_at(step, config) for step in range(10, 110)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(("items", "size"), [(10, 3), (3, 10), (8, 4)])
def test_batches_are_full_and_use_every_item_equally(items, size):
    batches = epoch_batches(items, size, seed=3)
    drawn = np.concatenate([batches(step) for step in range(items)])
    assert all(len(batches(step)) == size for step in range(items))
    assert np.bincount(drawn, minlength=items).tolist() == [size] * items


@pytest.mark.parametrize(("items", "size"), [(10, 3), (26, 25), (8, 4), (7, 7)])
def test_distinct_batches_hold_no_item_twice_and_leave_out_others_in_every_epoch(items, size):
    batches = epoch_batches(items, size, seed=3, distinct=True)
    drawn = [batches(step) for step in range(60 * (items // size))]
    assert all(len(np.unique(batch)) == size for batch in drawn)
    epochs = np.concatenate(drawn).reshape(60, -1)
    assert all(len(np.unique(epoch)) == items // size * size for epoch in epochs)
    assert set(np.concatenate(drawn)) == set(range(items))
    with pytest.raises(ValueError, match="cannot fill a batch of 4 distinct"):
        epoch_batches(3, 4, seed=3, distinct=True)


def test_choosing_a_batch_among_a_million_copies_the_batch_alone():
    batches = epoch_batches(1_000_000, 64, seed=0)
    expected = np.random.default_rng([0, 0]).permutation(1_000_000)[64:128]
    batches(0)
    tracemalloc.start()
    try:
        found = batches(1)
        assert tracemalloc.get_traced_memory()[1] < 100 * found.nbytes
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, expected)


def test_a_diverging_loss_is_one_sentence_with_the_step_and_the_remedy(tmp_path):
    with pytest.raises(DivergedError, match=r"not finite after step 2 .*smaller fit.learning_rate"):
        train(tmp_path / "run", scale=math.inf)


def test_after_checkpoints_a_diverging_loss_says_which_one_is_kept(tmp_path):
    with pytest.raises(DivergedError, match=r"the checkpoint of step 4 in .*trainer is kept"):
        train(tmp_path / "run", checkpoint_every=2, log_every=1, explode_at=5)
    _, run = train(tmp_path / "run", checkpoint_every=2, log_every=1, resume=True)
    assert [record["step"] for record in run.history()] == list(range(1, 11))


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="this system has no limit on a file's size")
def test_a_disk_that_fills_up_while_saving_costs_nothing_but_time(tmp_path, monkeypatch):
    import resource

    monkeypatch.setattr(RunFolder, "_tensorboard", lambda self: None)  # its thread would meet the limit too
    whole, _ = train(tmp_path / "whole", checkpoint_every=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(folder, step, *parts):
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 if step == 6 else soft, hard))
        try:
            save_checkpoint(folder, step, *parts)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with monkeypatch.context() as patch:
        patch.setattr("cadiff.training.save_checkpoint", full)
        with pytest.raises(Exception) as caught:
            train(tmp_path / "cut", checkpoint_every=2)
    assert "larger than this disk or this account allows" in str(_refused_by_disk(caught.value))
    there = RunFolder(tmp_path / "cut").last_checkpoint
    assert there is not None and read_json(there / "state.json")["step"] == 4
    assert sorted(path.name for path in (tmp_path / "cut").glob("*trainer*")) == ["trainer"]
    resumed, _ = train(tmp_path / "cut", checkpoint_every=2, resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_weights_that_are_not_finite_are_neither_kept_nor_handed_on(tmp_path):
    """A loss of 0 whose gradient is 0 / 0: every logged loss is finite, the weights are not."""
    model = nn.Linear(5, 1)
    config = FitConfig(steps=4, batch_size=4, checkpoint_every=1)
    run = RunFolder.open(tmp_path / "run", stage="toy", config=config)

    def loss(batch, _):
        return {"loss": (0.0 * model(batch)).square().sum().sqrt()}

    with pytest.raises(DivergedError, match="weights are not finite after step 1 "):
        fit(loss, {"m": model}, lambda _: X[:4], config, run=run)
    assert run.last_checkpoint is None


def test_precisions_can_change_within_a_process(tmp_path):
    exact, _ = train(tmp_path / "a", precision="fp32")
    coarse, _ = train(tmp_path / "b", precision="bf16")
    again, _ = train(tmp_path / "c", precision="fp32")
    assert all(torch.equal(exact[name], again[name]) for name in exact)
    assert not torch.equal(exact["0.weight"], coarse["0.weight"])
    torch.testing.assert_close(exact["0.weight"], coarse["0.weight"], atol=0.05, rtol=0)


def test_only_parameters_that_require_a_gradient_move(tmp_path):
    model = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 1))
    model[0].requires_grad_(False)
    frozen = model[0].weight.clone()
    config = FitConfig(steps=3, batch_size=4)
    run = RunFolder.open(tmp_path / "run", stage="toy", config=config)
    fit(lambda b, _: {"loss": model(b).square().mean()}, {"m": model}, lambda _: X[:4], config, run=run)
    assert torch.equal(frozen, model[0].weight)
    assert not model.training


def test_the_average_follows_the_recursion(tmp_path):
    seen: list[torch.Tensor] = []
    model = nn.Linear(5, 1, bias=False)

    def loss(batch, _):
        seen.append(model.weight.detach().clone())
        return {"loss": model(batch).square().mean()}

    start, ends = model.weight.detach().clone(), {}
    for name, decay in (("plain", None), ("averaged", 0.999)):
        seen.clear()
        model.weight.data.copy_(start)
        config = FitConfig(steps=4, batch_size=4, ema_decay=decay, learning_rate=0.1)
        run = RunFolder.open(tmp_path / name, stage="toy", config=config)
        fit(loss, {"m": model}, lambda _: X[:4], config, run=run)
        ends[name] = model.weight.detach().clone()
    # weights after step k are seen at the start of step k + 1; the average changes no step
    expected = start
    for k, weights in enumerate([*seen[1:], ends["plain"]]):
        kept = min(0.999, (1 + k) / (10 + k))
        expected = kept * expected + (1 - kept) * weights
    torch.testing.assert_close(ends["averaged"], expected)
    assert not torch.allclose(expected, ends["plain"], atol=1e-3)


def test_a_batch_that_does_not_divide_among_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    refuse_uneven(FitConfig(batch_size=6))  # no launcher says so: a cluster may set the name for itself
    monkeypatch.setenv("LOCAL_RANK", "0")
    refuse_uneven(FitConfig(batch_size=6))
    with pytest.raises(
        ConfigError, match=r"batch_size=7, .* evenly among 3 processes: set fit.batch_size=6, or"
    ):
        refuse_uneven(FitConfig(batch_size=7))
    with pytest.raises(ConfigError, match=r"set fit.batch_size=3, or"):
        refuse_uneven(FitConfig(batch_size=2))
    with pytest.raises(ConfigError, match="A GAN trains in one process, and 3 were launched"):
        refuse_several("A GAN")


@pytest.mark.parametrize("numbers", [[], [4], [0, 1, 2, 3]])
def test_batches_read_ahead_are_the_same_batches(numbers):
    def batches(number):
        return {"x": X[number : number + 2], "both": (Y[:number], [X[:1]]), "number": number}

    cpu = torch.device("cpu")
    plain, ahead = (list(feed(batches, numbers, cpu, ahead=choice)) for choice in (False, True))
    assert [batch["number"] for batch in ahead] == numbers
    for one, other in zip(plain, ahead, strict=True):
        assert torch.equal(one["x"], other["x"]) and torch.equal(one["both"][1][0], other["both"][1][0])
        assert torch.equal(one["both"][0], other["both"][0])


def test_what_goes_wrong_while_reading_ahead_is_raised_at_its_batch():
    def batches(number):
        return X[:2] / (torch.ones(()) if number < 2 else raise_missing())

    def raise_missing():
        raise FileNotFoundError("betas.npy")

    coming = feed(batches, range(4), torch.device("cpu"), ahead=True)
    assert len([next(coming), next(coming)]) == 2
    with pytest.raises(FileNotFoundError):
        next(coming)


def test_gradients_are_clipped_to_a_joint_norm():
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.full((3,), 2.0), torch.full((2, 2), -1.0)
    clip_gradients(parameters, 0.8)
    assert sum(p.grad.square().sum() for p in parameters[:2]).sqrt().item() == pytest.approx(0.8)
    assert (parameters[0].grad[0] / parameters[1].grad[0, 0]).item() == pytest.approx(-2.0)


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of its compiler
def test_blocks_are_compiled_once_for_each_size_and_left_as_they_were():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    model = FmriMae(
        FmriMaeConfig(
            num_voxels=32,
            patch_size=4,
            embed_dim=8,
            depth=3,
            num_heads=2,
            decoder_embed_dim=4,
            decoder_depth=2,
            decoder_num_heads=2,
        )
    )
    names, betas = list(model.state_dict()), torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    expected = model(betas, 0.5, torch.Generator().manual_seed(0))[0]
    with compiled_blocks([model], backend=backend) as number:
        for _ in range(3):
            found = model(betas, 0.5, torch.Generator().manual_seed(0))[0]
        assert list(model.state_dict()) == names
    torch.testing.assert_close(found, expected)
    assert (number, len(graphs)) == (5, 2)  # of three blocks and of two
    model(betas[:1], 0.5, torch.Generator().manual_seed(0))
    assert len(graphs) == 2


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of its compiler
@pytest.mark.slow
def test_a_compiled_training_is_the_plain_one_and_says_how_long_it_took_to_begin(tmp_path, capfd):
    def weights(out, compiled):
        torch.manual_seed(0)
        model = nn.Sequential(Block(8, 2, 1.0), Block(8, 2, 1.0))
        config = FitConfig(steps=4, batch_size=4, compile=compiled)
        run = RunFolder.open(out, stage="toy", config=config)
        x = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(1))
        fit(lambda b, _: {"loss": (model(b) - 1).square().mean()}, {"m": model}, lambda _: x, config, run=run)
        return model.state_dict()

    plain, compiled = weights(tmp_path / "plain", None), weights(tmp_path / "compiled", True)
    torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=0)
    assert re.search(r"training: compiling 2 blocks, the first step took \d+ s", capfd.readouterr().out)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("clip_norm", -1),
        ("clip_norm", 0),
        ("betas", (1.0, 0.9)),
        ("seed", -1),
        ("ema_decay", 1.0),
        ("min_learning_rate", 1.0),
    ],
)
def test_settings_that_would_train_backwards_or_not_at_all_are_refused(setting, value):
    with pytest.raises(ValidationError, match=setting):
        FitConfig(**{setting: value})
