"""What a saved folder carries, so that `trust_remote_code=True` loads it where nest_hf is not installed.

transformers copies the file of a saved configuration, feature extractor or processor with all files that it reaches by
relative imports, and copies them again into a cache where it loads a folder. The imports below never run; they make
every file reachable from each of the three, so that any folder holds the code of all our classes. The files lie flat,
side by side, and import nothing but each other and public libraries.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .feature_extraction_nest import NestFeatureExtractor as NestFeatureExtractor
    from .modeling_nest import NestModel as NestModel
    from .modeling_nest_asr import NestAsrModel as NestAsrModel
    from .modeling_nest_heads import NestForXVector as NestForXVector
    from .processing_nest_asr import NestAsrProcessor as NestAsrProcessor

# transformers alone would name the saved class, and the other auto classes would not find theirs
AUTO_MAPS = {
    "nest": {
        "AutoConfig": "configuration_nest.NestConfig",
        "AutoFeatureExtractor": "feature_extraction_nest.NestFeatureExtractor",
        "AutoModel": "modeling_nest.NestModel",
        "AutoModelForAudioClassification": "modeling_nest_heads.NestForSequenceClassification",
        "AutoModelForAudioFrameClassification": "modeling_nest_heads.NestForAudioFrameClassification",
        "AutoModelForAudioXVector": "modeling_nest_heads.NestForXVector",
        "AutoModelForCTC": "modeling_nest.NestForCTC",
        "AutoModelForPreTraining": "modeling_nest.NestForPreTraining",
    },
    "nest_asr": {
        "AutoConfig": "configuration_nest_asr.NestAsrConfig",
        "AutoModel": "modeling_nest_asr.NestAsrModel",
        "AutoModelForMultimodalLM": "modeling_nest_asr.NestAsrForConditionalGeneration",
        "AutoProcessor": "processing_nest_asr.NestAsrProcessor",
    },
}
