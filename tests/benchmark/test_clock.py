"""The clock in the training loop: what is warm-up, how long a repeat is, and that it ends."""

import itertools

import pytest
import torch

from cadiff.benchmark.training import Clock, Enough

CPU = torch.device("cpu")


@pytest.fixture
def ticking(monkeypatch):
    """Every step takes 0.25 s, the first one 5 s."""
    now = {"t": 0.0}
    monkeypatch.setattr("cadiff.benchmark.training.time.perf_counter", lambda: now["t"])

    def run(clock):
        for step in itertools.count():
            if step < 3:  # later ones are replayed without a call
                clock.begin()
            now["t"] += 5.0 if step == 0 else 0.25
            clock.end()

    return run


@pytest.mark.parametrize(("least", "steps"), [(0.1, 1), (1.0, 4), (10.0, 40)])
def test_a_repeat_is_as_many_steps_as_its_time_asks_for(ticking, least, steps):
    clock = Clock(CPU, warmup=3, repeats=4, least=least)
    with pytest.raises(Enough):
        ticking(clock)
    assert clock.first == 5.0 and clock.warm == [5.0, 0.25, 0.25]
    assert clock.steps == steps
    assert clock.times == [pytest.approx(0.25)] * 4


def test_the_profiler_runs_after_the_last_repeat(ticking):
    class Profiler:
        calls = ()

        def start(self):
            self.calls += ("start",)

        def stop(self):
            self.calls += ("stop",)

    profiler = Profiler()
    clock = Clock(CPU, warmup=1, repeats=2, least=0.1, profiler=profiler)
    with pytest.raises(Enough):
        ticking(clock)
    assert profiler.calls == ("start", "stop") and len(clock.times) == 2


def test_the_hook_is_gone_afterwards():
    """Optimisers of later trainings must not feel it."""
    from torch.optim import optimizer

    from cadiff.benchmark.training import time_training
    from cadiff.experiments import preset_configs
    from cadiff.plan import find_models
    from cadiff.plan.machines import KNOWN

    before = dict(optimizer._global_optimizer_post_hooks)
    configs = preset_configs(
        "demo", ["contrast.num_voxels=64", "contrast.mae.embed_dim=16", "contrast.mae.depth=1"]
    )
    time_training(
        "contrast", configs["contrast"], find_models(configs), 4, KNOWN["h100"], repeats=1, least=0.01
    )
    assert dict(optimizer._global_optimizer_post_hooks) == before
