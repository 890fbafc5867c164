"""Every method and metric, those that run the network often with fewer passes: for tests of what holds for all."""

from scl_ray.attribution import METHODS
from scl_ray.metrics import METRICS

_METHODS = {
    "integrated_gradients": "integrated_gradients[steps=3]",
    "smooth_grad": "smooth_grad[samples=3]",
    "gradient_shap": "gradient_shap[samples=3]",
    "deep_lift_shap": "deep_lift_shap[baselines=2]",
    "occlusion": "occlusion[patch=16]",
    "feature_ablation": "feature_ablation[patch=16]",
    "lime": "lime[patch=16,samples=20]",
    "kernel_shap": "kernel_shap[patch=16,samples=40]",
}
_METRICS = {
    "pixel_flipping_auc": "pixel_flipping_auc[features_per_step=128]",
    "region_perturbation": "region_perturbation[regions=4]",
    "irof": "irof[segments=10]",
    "faithfulness_correlation": "faithfulness_correlation[runs=10]",
    "sensitivity_n": "sensitivity_n[runs=4]",
    "faithfulness_estimate": "faithfulness_estimate[features_per_step=128]",
    "monotonicity_correlation": "monotonicity_correlation[features_per_step=128,samples=2]",
    "effective_complexity": "effective_complexity[features_per_step=128,samples=2]",
    "smooth_mprt": "smooth_mprt[samples=2]",
    **{name: f"{name}[samples=3]" for name in (
        "local_lipschitz_estimate", "max_sensitivity", "avg_sensitivity", "relative_input_stability",
        "relative_output_stability", "relative_representation_stability",
    )},
}  # fmt: skip

QUICK_METHODS = [_METHODS.get(name, name) for name in METHODS]
QUICK_METRICS = [_METRICS.get(name, name) for name in METRICS]
