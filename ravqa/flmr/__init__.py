"""The FLMR model family on transformers: FLMR, PreFLMR and the bilingual PreFLMR.

Importing this package registers the models with `AutoConfig`, `AutoModel` and `AutoTokenizer`.
"""

from transformers import AutoConfig, AutoModel

from ravqa.flmr.configuration import FLMRConfig, FLMRInputError, FLMRTextConfig, FLMRVisionConfig
from ravqa.flmr.conversion import convert
from ravqa.flmr.encoders import FLMRTextModel, FLMRVisionModel
from ravqa.flmr.modeling import FLMRModelForRetrieval, FLMRPretrainedModelForRetrieval
from ravqa.flmr.outputs import (
    FLMRContextEncoderOutput,
    FLMRModelForRetrievalOutput,
    FLMRQueryEncoderOutput,
    ImageFeatures,
)
from ravqa.flmr.processing import FLMRProcessor
from ravqa.flmr.tokenization import (
    FLMRContextEncoderTokenizer,
    FLMRContextEncoderTokenizerFast,
    FLMRQueryEncoderTokenizer,
    FLMRQueryEncoderTokenizerFast,
    register_tokenizers,
)

__all__ = [
    "FLMRConfig",
    "FLMRContextEncoderOutput",
    "FLMRContextEncoderTokenizer",
    "FLMRContextEncoderTokenizerFast",
    "FLMRInputError",
    "FLMRModelForRetrieval",
    "FLMRModelForRetrievalOutput",
    "FLMRPretrainedModelForRetrieval",
    "FLMRProcessor",
    "FLMRQueryEncoderOutput",
    "FLMRQueryEncoderTokenizer",
    "FLMRQueryEncoderTokenizerFast",
    "FLMRTextConfig",
    "FLMRTextModel",
    "FLMRVisionConfig",
    "FLMRVisionModel",
    "ImageFeatures",
    "convert",
]

for _config, _model in (
    (FLMRConfig, FLMRModelForRetrieval),
    (FLMRTextConfig, FLMRTextModel),
    (FLMRVisionConfig, FLMRVisionModel),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
register_tokenizers(FLMRConfig, FLMRTextConfig)
