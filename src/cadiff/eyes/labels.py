"""Are a network's classes ImageNet-1k's, in the usual order? Told by a few of their names."""

from __future__ import annotations

from collections.abc import Sequence

ANCHORS = {
    0: ("tench", "n01440764"),
    1: ("goldfish", "n01443537"),
    207: ("golden retriever", "n02099601"),
    340: ("zebra", "n02391049"),
    404: ("airliner", "n02690373"),
    546: ("electric guitar", "n03272010"),
    817: ("sports car", "n04285008"),
    954: ("banana", "n07753592"),
    999: ("toilet", "n15075141"),
}
"""Index -> a word of its name, and its WordNet id."""


def are_imagenet(labels: Sequence[str] | None) -> bool:
    """Whether 1,000 names stand in the usual order; names may be words or WordNet ids."""
    if labels is None or len(labels) != 1000:
        return False
    return all(any(word in labels[index].lower() for word in words) for index, words in ANCHORS.items())
