import math
import re

import pytest
import torch

from asr.errors import ConfigError
from asr.training.schedules import constant, noam, onecycle, plateau, warmup_cosine

PEAKS = (0.5, 0.02)


def optimizer(momentum=0.0):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": peak} for peak in PEAKS]
    return torch.optim.SGD(groups, lr=0.5, momentum=momentum)


def rates(schedule, steps, **options) -> list[float]:
    """The learning rate of each step, as a share of the peak; of both groups alike."""
    ours = optimizer()
    scheduler, found = schedule(ours, steps, **options), []
    for _ in range(steps):
        one, other = (group["lr"] / peak for group, peak in zip(ours.param_groups, PEAKS, strict=True))
        assert one == pytest.approx(other)
        found.append(one)
        ours.step()
        scheduler.step()  # after the last step, too, as Lightning does
    return found


def test_warmup_cosine():
    found = rates(warmup_cosine, 100, warmup=0.1, end=0.2)
    assert found[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    expected = [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * k / 90)) for k in range(90)]
    assert found[10:] == pytest.approx(expected)
    assert max(found) == 1 and found[55] == pytest.approx(0.6)


def test_onecycle_is_cosine_up_and_down():
    found = rates(onecycle, 100, warmup=0.2, start=0.1, end=0.001)
    top = 0.2 * 101 - 1
    for step, rate in enumerate(found):
        low, share = (0.1, 1 - step / top) if step <= top else (0.001, (step - top) / (100 - top))
        assert rate == pytest.approx(low + (1 - low) * 0.5 * (1 + math.cos(math.pi * share)))
    assert found[0] == pytest.approx(0.1) and found[-1] < 0.01


def test_onecycle_equals_torch():
    theirs = optimizer()
    options = {"total_steps": 101, "pct_start": 0.15, "div_factor": 25, "final_div_factor": 1e4}
    scheduler = torch.optim.lr_scheduler.OneCycleLR(theirs, list(PEAKS), **options, cycle_momentum=False)
    for rate in rates(onecycle, 100):
        assert rate == pytest.approx(theirs.param_groups[0]["lr"] / PEAKS[0])
        theirs.step()
        scheduler.step()


def test_onecycle_may_end_at_zero():
    assert rates(onecycle, 100, start=1.0, end=0)[-1] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("schedule", "options", "named"),
    [
        (onecycle, {"start": 0}, "schedule.start=0 must be above 0"),
        (onecycle, {"start": -1}, "schedule.start=-1 must be above 0"),
        (onecycle, {"end": -0.1}, "schedule.end=-0.1 0 or more"),
        (warmup_cosine, {"end": -0.1}, "schedule.end=-0.1: must be a share of the peak"),
        (plateau, {"factor": 1}, "schedule.factor=1 must be above 0 and below 1"),
        (plateau, {"patience": -1}, "schedule.patience=-1"),
    ],
)
def test_options_that_make_no_schedule(schedule, options, named):
    with pytest.raises(ConfigError, match=re.escape(named)):
        schedule(optimizer(), 10, **options)


def test_onecycle_leaves_the_momentum():
    ours = optimizer(momentum=0.9)
    scheduler = onecycle(ours, 20)
    for _ in range(20):
        ours.step()
        scheduler.step()
        assert {group["momentum"] for group in ours.param_groups} == {0.9}


def test_noam():
    found = rates(noam, 500, warmup_steps=100)
    assert found[:100] == pytest.approx([(k + 1) / 100 for k in range(100)])
    assert found[100:] == pytest.approx([(100 / (k + 1)) ** 0.5 for k in range(100, 500)])
    assert max(found) == 1 and found[399] == pytest.approx(0.5)


def test_constant():
    assert rates(constant, 20) == [1] * 20


def test_plateau():
    ours = optimizer()
    scheduler = plateau(ours, 100, factor=0.5, patience=1, minimum=0.1)
    shares = []
    for wer in [0.9, 0.8, 0.8, 0.81, 0.7, 0.75, 0.72, 0.71, 0.7, 0.7, 0.7]:
        scheduler.step(wer)
        shares.append(ours.param_groups[0]["lr"])
    assert shares == [0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125, 0.1, 0.1, 0.1]


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 10, 19])
@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        (warmup_cosine, {}),
        (warmup_cosine, {"warmup": 0.99}),
        (onecycle, {}),
        (onecycle, {"warmup": 0.1}),  # with 9 steps, torch's own divides by zero
        (onecycle, {"warmup": 0.5}),
        (onecycle, {"warmup": 0.05}),
        (noam, {}),
        (noam, {"warmup_steps": 1}),
        (constant, {}),
    ],
)
def test_few_steps(schedule, options, steps):
    found = rates(schedule, steps, **options)
    assert len(found) == steps and all(0 < rate <= 1 + 1e-9 for rate in found)


@pytest.mark.parametrize("schedule", [warmup_cosine, onecycle])
@pytest.mark.parametrize("warmup", [0, 1, -0.1, 5])
def test_warmup_is_a_share(schedule, warmup):
    with pytest.raises(ConfigError, match=f"schedule.warmup={warmup}: must be a share"):
        schedule(optimizer(), 10, warmup=warmup)


def test_noam_needs_a_warmup():
    with pytest.raises(ConfigError, match=r"schedule\.warmup_steps=0"):
        noam(optimizer(), 10, warmup_steps=0)
