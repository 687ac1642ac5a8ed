"""NEST speech pretraining and telephone speech recognition in the Hugging Face ecosystem."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForCTC, AutoModelForPreTraining

from .configuration_nest import NestConfig
from .feature_extraction_nest import NestFeatureExtractor
from .modeling_nest import (
    NestForCTC,
    NestForPreTraining,
    NestForPreTrainingOutput,
    NestModel,
    NestPreTrainedModel,
    aggregate_layers,
)

__version__ = "0.1.0"

AutoConfig.register("nest", NestConfig)
AutoModel.register(NestConfig, NestModel)
AutoModelForPreTraining.register(NestConfig, NestForPreTraining)
AutoModelForCTC.register(NestConfig, NestForCTC)
AutoFeatureExtractor.register(NestConfig, NestFeatureExtractor)

__all__ = [
    "NestConfig",
    "NestFeatureExtractor",
    "NestForCTC",
    "NestForPreTraining",
    "NestForPreTrainingOutput",
    "NestModel",
    "NestPreTrainedModel",
    "aggregate_layers",
]
