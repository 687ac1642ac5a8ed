"""The two vocabularies of `convert_nemo`: keys of NeMo's configuration, names of its tensors."""

NEST_TARGETS = ("EncDecDenoiseMaskedTokenPredModel", "EncDecMaskedTokenPredModel")
CTC_TARGETS = ("EncDecCTCModel", "EncDecCTCModelBPE")

# NeMo's key -> field of NestConfig, where the value passes unchanged
CONFIG_FIELDS = {
    "num_classes": "codebook_size",
    "num_books": "num_codebooks",
    "code_dim": "codebook_dim",
    "squeeze_single": "squeeze_single",
    "masking.block_size": "mask_block_size",
    "masking.mask_prob": "mask_prob",
    "masking.mask_value": "mask_value",
    "masking.freeze": "freeze_mask_embedding",
    "masking.allow_overlap": "mask_allow_overlap",
    "quantizer.dist_fn": "quantizer_distance",
    "encoder.feat_in": "num_mel_bins",
    "encoder.n_layers": "num_hidden_layers",
    "encoder.d_model": "hidden_size",
    "encoder.n_heads": "num_attention_heads",
    "encoder.subsampling_factor": "subsampling_factor",
    "encoder.subsampling_conv_channels": "subsampling_conv_channels",
    "encoder.xscaling": "scale_input",
    "encoder.pos_emb_max_len": "max_position_embeddings",
    "encoder.conv_kernel_size": "conv_kernel_size",
    "encoder.dropout_pre_encoder": "dropout",
    "encoder.dropout_emb": "dropout_positions",
    "encoder.dropout_att": "attention_dropout",
    "decoder.use_bias": "decoder_bias",
    "loss.mask_threshold": "mask_threshold",
}
# NeMo's key -> several fields of NestConfig with the same value
CONFIG_SHARED = {
    "encoder.use_bias": ("attention_bias", "convolution_bias"),
    "encoder.dropout": ("hidden_dropout", "activation_dropout"),
}
FEATURE_FIELDS = {
    "preprocessor.features": "feature_size",
    "preprocessor.sample_rate": "sampling_rate",
    "preprocessor.n_fft": "n_fft",
    "preprocessor.preemph": "preemphasis",
    "preprocessor.dither": "dither",
    "preprocessor.pad_to": "pad_to_multiple_of",
    "preprocessor.pad_value": "padding_value",
}
# NeMo's key -> the only values implemented here; `to_nemo` writes the first
FIXED = {
    # NeMo's post_conv quantizes convolved features and cannot restore what it saves: it has no counterpart here
    "mask_position": ("pre_conv",),
    "preprocessor._target_": ("nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",),
    "preprocessor.normalize": ("per_feature",),
    "preprocessor.window": ("hann",),
    "preprocessor.log": (True,),
    "preprocessor.frame_splicing": (1,),
    "masking._target_": (
        "nemo.collections.asr.modules.RandomBlockMasking",
        "nemo.collections.asr.modules.ssl_modules.RandomBlockMasking",
    ),
    "quantizer._target_": (
        "nemo.collections.asr.modules.RandomProjectionVectorQuantizer",
        "nemo.collections.asr.modules.ssl_modules.RandomProjectionVectorQuantizer",
    ),
    "quantizer.freeze": (True,),
    "encoder._target_": ("nemo.collections.asr.modules.ConformerEncoder",),
    "encoder.feat_out": (-1,),
    "encoder.subsampling": ("dw_striding",),
    "encoder.causal_downsampling": (False,),
    "encoder.self_attention_model": ("rel_pos",),
    "encoder.att_context_size": ([-1, -1], None),
    "encoder.att_context_style": ("regular",),
    "encoder.untie_biases": (True,),
    "encoder.conv_norm_type": ("batch_norm",),
    "encoder.conv_context_size": (None,),
    "encoder.stochastic_depth_drop_prob": (0.0, 0),
    "encoder.stochastic_depth_mode": ("linear",),
    "encoder.stochastic_depth_start_layer": (1,),
    "decoder._target_": (
        "nemo.collections.asr.modules.MultiSoftmaxDecoder",
        "nemo.collections.asr.modules.ssl_modules.MultiSoftmaxDecoder",
    ),
    "loss._target_": ("nemo.collections.asr.losses.MultiMLMLoss",),
}
# The same for arguments of NeMo's classes that its YAML leaves at their defaults; not written
FIXED_UNWRITTEN = {
    "preprocessor.n_window_size": (None,),
    "preprocessor.n_window_stride": (None,),
    "preprocessor.mag_power": (2.0, 2),
    "preprocessor.lowfreq": (0, None),
    "preprocessor.highfreq": (None, 8000),
    "preprocessor.log_zero_guard_type": ("add",),
    "preprocessor.log_zero_guard_value": (2**-24,),
    "preprocessor.mel_norm": ("slaney",),
    "preprocessor.exact_pad": (False,),
    "preprocessor.stft_exact_pad": (False,),
    "preprocessor.stft_conv": (False,),
    "preprocessor.nb_augmentation_prob": (0.0, 0),
    "masking.max_mask_ratio": (0.8,),
    "quantizer.time_ahead": (False,),
    "encoder.subsampling_conv_chunking_factor": (1,),
    "encoder.reduction": (None,),
    "encoder.reduction_position": (None,),
    "encoder.reduction_factor": (1,),
    "encoder.att_context_probs": (None,),
    "encoder.att_chunk_context_size": (None,),
    "encoder.conv_context_style": ("regular",),
    "encoder.global_tokens": (0,),
    "encoder.global_tokens_spacing": (1,),
    "encoder.global_attn_separate": (False,),
}
# What NeMo's classes take for a key that the archive leaves out, where NestConfig's default is another
NEMO_DEFAULTS = {
    "preprocessor.features": 64,
    "preprocessor.window_size": 0.02,
    "preprocessor.window_stride": 0.01,
    "preprocessor.n_fft": None,
    "masking.block_size": 48,
    "masking.mask_prob": 0.5,
    "masking.allow_overlap": False,
    "quantizer.dist_fn": "cosine",
    "quantizer.combine_time_steps": 1,
    "encoder.subsampling": "striding",
    "encoder.subsampling_factor": 4,
    "encoder.subsampling_conv_channels": -1,
    "encoder.n_heads": 4,
    "encoder.conv_kernel_size": 31,
    "encoder.ff_expansion_factor": 4,
    "encoder.dropout_emb": 0.1,
    "encoder.dropout_att": 0.0,
    "decoder.use_bias": False,
    "loss.combine_time_steps": 1,
}
# Sections that describe how a run was made or deployed, not the model. They are not kept, and named in the log.
RUN_SECTIONS = (
    "target", "nemo_version", "train_ds", "validation_ds", "test_ds", "optim", "spec_augment", "log_prediction",
    "model_defaults", "use_pytorch_sdpa", "compute_eval_loss", "skip_nan_grad", "variational_noise", "tokenizer",
    "labels", "ctc_reduction", "interctc", "decoding", "init_from_nemo_model", "init_from_pretrained_model",
)  # fmt: skip
RUN_KEYS = (
    "preprocessor.rng", "preprocessor.use_torchaudio", "preprocessor.max_duration", "preprocessor.nb_max_freq",
    "encoder.use_pytorch_sdpa", "encoder.use_pytorch_sdpa_backends", "encoder.sync_max_audio_length",
    "decoder.vocabulary", "decoder.add_blank", "decoder.init_mode",
)  # fmt: skip

# Parts of tensor names that differ, (NeMo's, ours). Everything else has the same name on both sides.
TENSOR_NAMES = (
    ("encoder.pre_encode.conv.", "encoder.subsampling.layers."),
    ("encoder.pre_encode.out.", "encoder.subsampling.linear."),
    (".self_attn.linear_q.", ".self_attn.q_proj."),
    (".self_attn.linear_k.", ".self_attn.k_proj."),
    (".self_attn.linear_v.", ".self_attn.v_proj."),
    (".self_attn.linear_out.", ".self_attn.o_proj."),
    (".self_attn.linear_pos.", ".self_attn.relative_k_proj."),
    (".self_attn.pos_bias_", ".self_attn.bias_"),
    (".conv.batch_norm.", ".conv.norm."),
    ("quantizer.proj.weight", "quantizer.projection"),
    ("mask_processor.mask_embedding", "mask_embedding"),
    ("decoder.decoder_layers.0.", "decoder.linear."),
)


def our_name(nemo_name: str) -> str:
    """`encoder.layers.0.self_attn.linear_q.weight` -> `encoder.layers.0.self_attn.q_proj.weight`."""
    for nemo, ours in TENSOR_NAMES:
        nemo_name = nemo_name.replace(nemo, ours)
    return nemo_name


def nemo_name(our_name: str) -> str:
    """The inverse of `our_name`."""
    for nemo, ours in TENSOR_NAMES:
        our_name = our_name.replace(ours, nemo)
    return our_name
