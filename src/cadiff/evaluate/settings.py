"""Settings of one evaluation."""

from __future__ import annotations

from pydantic import Field

from cadiff.config import Config
from cadiff.evaluate.ledger import Selection


class EvaluateConfig(Config):
    """Settings of one evaluation."""

    judge: str | None = "efficientnet-lite2"
    """Classifier that looks at the pictures; null: pixel metrics only (digits and other pictures it never
    learned)."""
    n_way: int = Field(50, ge=2)
    """Classes in one trial of n-way identification, the truth among them."""
    top_k: tuple[int, ...] = (1, 5)
    """Ranks that count as success; the first is the headline."""
    size: int | None = Field(None, ge=2)
    """Resize reconstructions and stimuli to this many pixels square before scoring; null: the reconstructions' size."""
    subset: bool = False
    """Allow folders that show only some of the tested stimuli; the protocol says how many."""
    retrieval_pools: tuple[int, ...] = (50,)
    """Pool sizes for retrieving the stimulus by the judge's features; pools larger than the test set are cut to it."""
    eyes: dict[str, str] = Field(default_factory=dict)
    """Further networks to compare pictures by, name: folder or file of weights (docs/judges.md); none by default."""
    classes: tuple[int, ...] | None = None
    """Restrict truth and distractors to these ImageNet indices; null: all 1,000."""
    monte_carlo_trials: int = Field(0, ge=0)
    """Also run Algorithm 1's random trials this many times an image and report them beside the exact value;
    0: no."""
    num_bootstrap: int = Field(10_000, ge=100)
    """Resamples of the images for an interval, and sign flips for a permutation test."""
    selected_on: Selection | None = None
    """What the system was chosen by: nothing, validation or test; goes into the stamp beside the ledger's count."""
    headline: str | None = None
    """Metric that the report leads with; null: n-way top-k with a judge, PCC without."""
    batch_size: int | None = Field(None, ge=1)
    """Pictures that the judge sees at once; null: 64 on a GPU, 16 on a CPU."""
    train_pictures: int = Field(200, ge=0)
    """Training pictures, drawn by seed, that the picture controls are made of (mean image, best constant, ...); 0: none."""
    seed: int = Field(default=0, ge=0)
    """Seed of bootstrap, permutations, Monte-Carlo and the choice of training pictures."""
