"""Losses between the inner states of a student and of its teachers, for every instance and teacher apart.

So any weighting can weight them: a term gives shape (B, K), and is reduced once, by :class:`FeatureLosses`, with the
weights of each instance.
"""

from rlkd.feature_losses.layers import attention_layer_map, attention_loss, hidden_layer_map, hidden_loss
from rlkd.feature_losses.terms import (
    AttentionTerm,
    EncoderSizes,
    FeatureBatch,
    FeatureSettings,
    FeatureTerm,
    HiddenTerm,
    Projections,
    feature_terms,
)
from rlkd.feature_losses.weighted import FeatureLosses, make_feature_losses

__all__ = [
    "AttentionTerm",
    "EncoderSizes",
    "FeatureBatch",
    "FeatureLosses",
    "FeatureSettings",
    "FeatureTerm",
    "HiddenTerm",
    "Projections",
    "attention_layer_map",
    "attention_loss",
    "feature_terms",
    "hidden_layer_map",
    "hidden_loss",
    "make_feature_losses",
]
