"""One picture for every stimulus as the system under evaluation: it cannot be retrieved, and everything else is scored."""

from cadiff.artifacts import read_json
from cadiff.baselines import run_baseline
from cadiff.evaluate import EvaluateConfig, evaluate


def test_a_baseline_without_a_brain_is_evaluated_with_a_judge(linear_brain, tmp_path):
    made = run_baseline("mean-image", linear_brain, tmp_path / "mean")
    config = EvaluateConfig(judge="efficientnet-lite0", num_bootstrap=100, train_pictures=6, size=32)
    scores = read_json(
        evaluate(config, made, linear_brain, tmp_path / "evaluation", progress=False) / "evaluation.json"
    )
    own = scores["conditions"]["mean_image"]["metrics"]
    lacking = set(scores["metrics"]) - set(own)
    assert all(name.startswith("retrieval_back") for name in lacking)
    assert {row["metric"] for row in scores["comparisons"]} == set(own)
