"""NEST speech pretraining and telephone speech recognition in the Hugging Face ecosystem."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForAudioXVector,
    AutoModelForCTC,
    AutoModelForMultimodalLM,
    AutoModelForPreTraining,
    AutoProcessor,
)

from .configuration_nest import NestConfig
from .configuration_nest_asr import NestAsrConfig
from .decoding_settings import DecodingSettings
from .feature_extraction_nest import NestFeatureExtractor
from .modeling_nest import (
    NestForCTC,
    NestForPreTraining,
    NestForPreTrainingOutput,
    NestModel,
    NestPreTrainedModel,
    aggregate_layers,
)
from .modeling_nest_asr import NestAsrForConditionalGeneration, NestAsrModel
from .modeling_nest_heads import NestForAudioFrameClassification, NestForSequenceClassification, NestForXVector
from .pipelines import NestSpeechRecognitionPipeline, register
from .processing_nest_asr import NestAsrProcessor
from .transcription import Transcriber, Transcription

__version__ = "0.2.0"

AutoConfig.register("nest", NestConfig)
AutoModel.register(NestConfig, NestModel)
AutoModelForPreTraining.register(NestConfig, NestForPreTraining)
AutoModelForCTC.register(NestConfig, NestForCTC)
AutoModelForAudioClassification.register(NestConfig, NestForSequenceClassification)
AutoModelForAudioFrameClassification.register(NestConfig, NestForAudioFrameClassification)
AutoModelForAudioXVector.register(NestConfig, NestForXVector)
AutoFeatureExtractor.register(NestConfig, NestFeatureExtractor)
AutoConfig.register("nest_asr", NestAsrConfig)
AutoModel.register(NestAsrConfig, NestAsrModel)
AutoModelForMultimodalLM.register(NestAsrConfig, NestAsrForConditionalGeneration)
AutoProcessor.register(NestAsrConfig, NestAsrProcessor)
register()

__all__ = [
    "DecodingSettings",
    "NestAsrConfig",
    "NestAsrForConditionalGeneration",
    "NestAsrModel",
    "NestAsrProcessor",
    "NestConfig",
    "NestFeatureExtractor",
    "NestForAudioFrameClassification",
    "NestForCTC",
    "NestForPreTraining",
    "NestForPreTrainingOutput",
    "NestForSequenceClassification",
    "NestForXVector",
    "NestModel",
    "NestPreTrainedModel",
    "NestSpeechRecognitionPipeline",
    "Transcriber",
    "Transcription",
    "aggregate_layers",
]
