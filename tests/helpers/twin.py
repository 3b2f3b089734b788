"""PLATON and its rivals written down plainly from the formulas, in float64, to test against."""

import math

import torch


class PlainTwin:
    """Same rules as `PlatonScheduler`, one expression per formula; no ties are broken."""

    def __init__(
        self, parameters, *, amount, total_steps, warmup_steps, cooldown_steps, initial_amount=0.0,
        beta1=0.85, beta2=0.95, window=10, criterion="platon", masking="step", schedule="cubic",
        scope="global",
    ):  # fmt: skip
        self.parameters = parameters
        self.amount, self.initial_amount = amount, initial_amount
        self.total, self.warmup, self.cooldown = total_steps, warmup_steps, cooldown_steps
        self.beta1, self.beta2, self.window = beta1, beta2, window
        self.criterion, self.masking, self.schedule = criterion, masking, schedule
        self.scope = scope
        self.step_number = 0
        zeros = {n: torch.zeros(p.shape, dtype=torch.float64) for n, p in parameters.items()}
        self.samples = {n: [zero] for n, zero in zeros.items()}  # the phantom zero
        self.mean_sensitivity = dict(zeros)
        self.mean_uncertainty = dict(zeros)
        self.movement = dict(zeros)
        self.masks = {n: torch.ones(p.shape, dtype=torch.bool) for n, p in parameters.items()}

    @torch.no_grad()
    def step(self):
        self.step_number += 1
        t = self.step_number
        ramp_end = self.total - self.cooldown
        chooses = t > self.warmup and (t % self.window == 0 or t in (ramp_end, self.total))
        if self.schedule == "once":  # at the first window's end from the warm-up's end on
            ends = [s for s in range(1, ramp_end) if s % self.window == 0 and s >= self.warmup]
            ramp_end = (ends + [ramp_end])[0]
            chooses = t == ramp_end
        if t % self.window == 0 and not (self.schedule == "once" and t > ramp_end):
            for name in self.parameters:
                self._end_window(name)
        for name, parameter in self.parameters.items():
            gradient = parameter.grad.double()
            product = parameter.double() * gradient
            samples = {"movement": -product, "fisher": gradient**2}
            self.samples[name].append(samples.get(self.criterion, product.abs()))
        if chooses:
            self._choose(t, ramp_end)
        if self.masking == "step" or chooses or t > ramp_end:
            for name, parameter in self.parameters.items():
                parameter[~self.masks[name]] = 0

    def _end_window(self, name):
        mean = torch.stack(self.samples[name]).mean(0)
        self.samples[name] = []
        sensitivity = self.beta1 * self.mean_sensitivity[name] + (1 - self.beta1) * mean
        deviation = (mean - sensitivity).abs()
        self.mean_sensitivity[name] = sensitivity
        self.mean_uncertainty[name] = (
            self.beta2 * self.mean_uncertainty[name] + (1 - self.beta2) * deviation
        )
        left = 1 - (self.step_number - self.window) / self.total
        self.movement[name] = self.movement[name] + left * mean

    def scores(self, name):
        weight = self.parameters[name].detach().double()
        return {
            "platon": lambda: self.mean_sensitivity[name] * self.mean_uncertainty[name],
            "sensitivity": lambda: self.mean_sensitivity[name],
            "movement": lambda: self.movement[name],
            "magnitude": lambda: weight.abs(),
            "fisher": lambda: weight**2 * self.mean_sensitivity[name] / 2,
            "scaled_magnitude": lambda: weight.abs() / (weight**2).sum().sqrt(),
        }[self.criterion]()

    def target(self, t):
        ramp_end = self.total - self.cooldown
        if t >= ramp_end or self.schedule == "once":
            return self.amount
        left = 1 - (t - self.warmup) / (ramp_end - self.warmup)
        first, last = 1 - self.initial_amount, 1 - self.amount
        density = {
            "cubic": last + (first - last) * left**3,
            "linear": last + (first - last) * left,
            "exponential": first**left * last ** (1 - left),
        }[self.schedule]
        return 1 - density

    def _choose(self, t, ramp_end):
        scores = {name: self.scores(name) for name in self.parameters}
        sizes = {name: score.numel() for name, score in scores.items()}
        count = round(self.target(t) * sum(sizes.values()))
        if self.scope == "global":
            kept = _largest(torch.cat([score.flatten() for score in scores.values()]), count)
            parts = dict(zip(scores, kept.split(list(sizes.values())), strict=True))
        else:  # whole shares, and then one more where the most is missing
            exact = {name: count * size / sum(sizes.values()) for name, size in sizes.items()}
            shares = {name: math.floor(share + 1e-9) for name, share in exact.items()}
            by_lack = sorted(shares, key=lambda name: shares[name] - exact[name])
            for name in by_lack[: count - sum(shares.values())]:
                shares[name] += 1
            parts = {name: _largest(scores[name].flatten(), shares[name]) for name in scores}
        for name, part in parts.items():
            self.masks[name] = part.view(scores[name].shape)


def _largest(scores, count):
    """Which are left once so many of the smallest are gone."""
    assert count in (0, len(scores)) or scores.sort().values[: count + 1].diff()[-1] > 0, "a tie"
    kept = torch.ones(len(scores), dtype=torch.bool)
    kept[scores.argsort()[:count]] = False
    return kept
