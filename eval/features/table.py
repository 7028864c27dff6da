"""The feature extractors by name; no torch here, so that a mistyped name is an error at once."""

EXTRACTORS: dict[str, str] = {
    "inception": "trilemma.eval.features.extractors:inception",
    "dinov2": "trilemma.eval.features.extractors:dinov2",
    "clip": "trilemma.eval.features.extractors:clip",
    "classifier": "trilemma.eval.features.extractors:classifier",
    "pixels": "trilemma.eval.features.extractors:pixels",
}
"""Name -> "module:name" of the function that makes a `FeatureExtractor` from a `Source`."""
