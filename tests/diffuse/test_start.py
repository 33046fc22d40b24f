import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from cadiff.diffuse.start import LabelStart, LatentStart, scale_to
from cadiff.encoding.ridge import RidgePath, fit_ridge


def draw(n, v, c, *, noise, seed=0):
    g = torch.Generator().manual_seed(seed)
    betas, weight = torch.randn(n, v, generator=g) + 1.0, torch.randn(v, c, generator=g)
    return betas, betas @ weight + 2.0 + noise * torch.randn(n, c, generator=g), weight


@pytest.mark.parametrize("shape", [(20, 50), (60, 10), (15, 15)])
@pytest.mark.parametrize("penalty", [1e-2, 1.0, 30.0])
def test_equals_sklearn(shape, penalty):
    x, y, _ = draw(*shape, 4, noise=0.5)
    fit = RidgePath(x.double(), y.double())
    weight, bias = fit.solve(penalty)
    other = Ridge(alpha=penalty * fit.mean_square.item()).fit(x.double().numpy(), y.double().numpy())
    np.testing.assert_allclose(weight.T, other.coef_, atol=1e-8)
    np.testing.assert_allclose(bias, other.intercept_, atol=1e-8)
    guess = fit.predict(fit.project(x.double()), penalty)
    np.testing.assert_allclose(guess, other.predict(x.double().numpy()), atol=1e-8)


def test_little_noise_is_fitted_and_much_noise_is_shrunk():
    groups = [str(i) for i in range(60)]
    x, y, weight = draw(60, 8, 3, noise=0.01)
    clear = fit_ridge(x, y, groups, score="r2")
    torch.testing.assert_close(clear.weight, weight, atol=0.1, rtol=0)
    assert clear.score > 0.99
    x, y, _ = draw(60, 8, 3, noise=50.0)
    assert fit_ridge(x, y, groups, score="r2").penalty > clear.penalty


def test_held_out_predictions_never_saw_their_group():
    """Targets that only name their group cannot be predicted for a group that is left out."""
    g = torch.Generator().manual_seed(0)
    code, table = torch.randn(10, 40, generator=g), torch.randn(10, 6, generator=g)
    label = torch.arange(10).repeat_interleave(4)
    betas = code[label] + 0.1 * torch.randn(40, 40, generator=g)
    by_class = fit_ridge(betas, table[label], [str(int(i)) for i in label], score="cosine")
    by_trial = fit_ridge(betas, table[label], [str(i) for i in range(40)], score="cosine")
    assert by_trial.score > 0.95
    assert by_class.score < 0.5


def test_label_start_points_to_the_label_at_its_length():
    g = torch.Generator().manual_seed(0)
    code, table = torch.randn(5, 30, generator=g), 20 * torch.randn(5, 8, generator=g)
    label = torch.arange(5).repeat(8)
    betas = code[label] + 0.1 * torch.randn(40, 30, generator=g)
    start, held_out, _ = LabelStart.fit(betas, label, table, [str(i) for i in range(40)])
    norms = table.norm(dim=1)
    for value in (start(betas), held_out):
        torch.testing.assert_close(value.norm(dim=1), norms.mean().expand(40))
        assert (torch.cdist(value / norms.mean(), table / norms[:, None]).argmin(1) == label).all()
    assert torch.isfinite(scale_to(torch.zeros(2, 3), torch.tensor(4.0))).all()


def test_latent_start_recovers_low_rank_latents():
    g = torch.Generator().manual_seed(0)
    scores, basis = torch.randn(50, 3, generator=g), torch.randn(3, 48, generator=g)
    latents = (scores @ basis + 0.5).view(50, 3, 4, 4)
    betas = scores @ torch.randn(3, 20, generator=g)
    start, ridge = LatentStart.fit(betas, latents, [str(i) for i in range(50)], num_components=3)
    assert ridge.score > 0.99
    torch.testing.assert_close(start(betas), latents.flatten(1), atol=0.1, rtol=0.1)
    torch.testing.assert_close(start.mean, latents.flatten(1).mean(0))
    assert start.components.shape == (3, 48)


def test_the_penalty_does_not_follow_the_noise_of_unseen_classes():
    """Held-out classes tell nothing here, so any penalty might win on them; the one that stimuli choose is taken."""
    g = torch.Generator().manual_seed(3)
    code, table = torch.randn(10, 40, generator=g), torch.randn(10, 6, generator=g)
    label = torch.arange(10).repeat_interleave(4)
    betas = code[label] + 0.5 * torch.randn(40, 40, generator=g)
    stimuli, classes = [str(i) for i in range(40)], [str(int(i)) for i in label]
    plain = fit_ridge(betas, table[label], stimuli, score="cosine")
    apart = fit_ridge(betas, table[label], stimuli, score="cosine", hold_out=classes)
    assert apart.penalty == plain.penalty and apart.score == plain.score
    torch.testing.assert_close(apart.weight, plain.weight)
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(plain.held_out, table[label]).mean() > 0.9
    assert cosine(apart.held_out, table[label]).mean() < 0.5
