"""The metrics by name: what each says, which way is better, what chance is. Definitions are frozen; protocols name them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PSNR_CEILING = 100.0
"""Decibel; identical pictures have no finite PSNR, and means need one."""
TWO_WAY = "two_way_"
BACKWARD = "retrieval_back_"


@dataclass(frozen=True)
class Metric:
    """What a number means."""

    label: str
    """For people, short."""
    protocol: str
    """Its part of the protocol string."""
    higher_is_better: bool
    chance: float | None
    """Score of a guess that knows nothing, where theory gives it; None: measured by mispairing."""
    percent: bool
    """Shown in per cent."""
    needs_judge: bool
    says: str
    """What the number is, as the beginning of a sentence."""

    @property
    def meaning(self) -> str:
        """One plain sentence: what the number says, which way is better, what chance is."""
        better = "higher is better" if self.higher_is_better else "lower is better"
        chance = "what the same pictures score with other stimuli"
        if self.chance is not None:
            chance = f"{100 * self.chance:.3g} %" if self.percent else f"{self.chance:g}"
        return f"{self.says}; {better}, chance is {chance}."


def metric_table(
    n_way: int,
    top_k: Sequence[int],
    judge: str | None,
    *,
    classes: Sequence[int] | None = None,
    pools: Sequence[int] = (),
    eyes: Mapping[str, Metric] | None = None,
) -> dict[str, Metric]:
    """The metrics by name, in the order of the report; those that need a judge only when there is one.

    Args:
        n_way, top_k: of n-way identification. judge: its short name, for protocols.
        classes: the judge's classes that take part in n-way identification; None: all. A score among fewer is another one,
            so the protocol names their number and a digest of them.
        pools: sizes of the pools for retrieval by the judge's features.
        eyes: metrics by further networks, of `cadiff.evaluate.judging.Judge`.
    """
    table: dict[str, Metric] = {}
    among, seen, drawn = "", "", f"{n_way} random classes"
    if classes:
        members = sorted(set(classes))
        digest = hashlib.sha256(",".join(map(str, members)).encode()).hexdigest()[:8]
        among, seen = f"of-{len(members)}-classes-{digest}/", f", out of {len(members)} that take part,"
        drawn = f"{n_way} random ones of these"
    if judge is not None:
        for k in top_k:
            ranks = "comes first" if k == 1 else f"is among the first {k}"
            table[f"n_way_top{k}"] = Metric(
                f"{n_way}-way top-{k}",
                f"{n_way}-way/top-{k}/{among}exact/{judge}",
                True,
                k / n_way,
                True,
                True,
                f"How often the class that the judge sees in the stimulus{seen} {ranks} of {drawn} when it looks at the "
                "reconstruction",
            )
        table["two_way_features"] = two_way(
            "2-way, judge's features", f"{judge}-pooled", "the judge's features", True
        )
        for pool in pools:
            table[f"retrieval_{pool}"] = Metric(
                f"retrieval of {pool}",
                f"retrieval-{pool}/exact/{judge}-pooled/pcc",
                True,
                1 / pool,
                True,
                True,
                f"How often, of {pool} stimuli, the reconstruction is most like its own, by the judge's features",
            )
            table[f"{BACKWARD}{pool}"] = Metric(
                f"backward retrieval of {pool}",
                f"retrieval-back-{pool}/exact/{judge}-pooled/pcc",
                True,
                1 / pool,
                True,
                True,
                f"How often, of the reconstructions of {pool} stimuli, the stimulus is most like its own, by the judge's "
                "features",
            )
    table.update(eyes or {})
    table["two_way_pixels"] = two_way("2-way, pixels", "pixels", "pixels", False)
    for name, row in _PIXELS.items():
        label, protocol, higher, says = row
        table[name] = Metric(label, protocol, higher, None, False, False, says)
    return table


def two_way(label: str, features: str, words: str, needs_judge: bool) -> Metric:
    """Two-way identification by some features, named for protocols and in words."""
    says = (
        "Share of the other stimuli that are less like the reconstruction than its own, equally like ones counted one half, by "
        f"the correlation of {words}"
    )
    return Metric(label, f"2-way/{features}/pcc", True, 0.5, True, needs_judge, says)


_PIXELS = {
    "pcc": (
        "PCC",
        "pcc",
        True,
        "Correlation of all pixels and colours of reconstruction and stimulus, 1 for equal pictures, 0 for a picture of one "
        "colour",
    ),
    "ssim": (
        "SSIM",
        "ssim/gauss11-1.5/cut5",
        True,
        "Agreement of local brightness, contrast and structure (Wang et al. 2004), 1 for equal pictures",
    ),
    "mse": (
        "MSE",
        "mse/range1",
        False,
        "Mean squared difference of pixels that run from 0 to 1, 0 for equal pictures",
    ),
    "psnr": (
        "PSNR, dB",
        f"psnr/at-most-{PSNR_CEILING:.0f}",
        True,
        f"The mean squared difference on a logarithmic scale, {PSNR_CEILING:.0f} dB for equal pictures",
    ),
}
