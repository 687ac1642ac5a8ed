"""Fun-ASR-Nano: transformers' class and FunASR's own code give the same numbers as the converted model."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.fun_asr.make_golden import TEXTS
from safetensors.torch import load_file
from tiny_asr import chatml_tokenizer, text_config, tower_config, waves
from transformers import (
    FunAsrNanoConfig,
    FunAsrNanoFeatureExtractor,
    FunAsrNanoForConditionalGeneration,
    FunAsrNanoProcessor,
)

from nest_hf.asr_prompt import CHAT_TEMPLATE
from nest_hf.convert_fun_asr import from_fun_asr, key_table, our_name
from nest_hf.modeling_nest_asr import NestAsrForConditionalGeneration, text_positions
from nest_hf.processing_nest_asr import NestAsrProcessor

FIXTURES = Path(__file__).parent / "fixtures" / "fun_asr"
PADDED = {"processor_kwargs": {"text_kwargs": {"padding": True, "padding_side": "left"}}}


@pytest.fixture(scope="module")
def golden():
    return load_file(FIXTURES / "golden.safetensors")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """FunASR's folder, converted and loaded again."""
    folder = tmp_path_factory.mktemp("converted")
    from_fun_asr(FIXTURES / "model", folder)
    return NestAsrForConditionalGeneration.from_pretrained(folder), NestAsrProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformers")
    tokenizer = chatml_tokenizer()
    torch.manual_seed(0)
    config = FunAsrNanoConfig(
        audio_config=tower_config("fun_asr_nano_encoder"),
        adaptor_config={
            "hidden_size": 32,
            "intermediate_size": 8,
            "num_attention_heads": 4,
            "projector_hidden_size": 48,
        },
        text_config=text_config(len(tokenizer)),
        audio_token_id=tokenizer.convert_tokens_to_ids("<|object_ref_start|>"),
    )
    model = FunAsrNanoForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    FunAsrNanoProcessor(FunAsrNanoFeatureExtractor(), tokenizer, CHAT_TEMPLATE).save_pretrained(folder)
    return folder


def copy_of_model(folder, change=None, conf=None):
    """FunASR's folder with other tensors or settings."""
    shutil.copytree(FIXTURES / "model", folder)
    if change is not None:
        state = torch.load(folder / "model.pt", weights_only=True)["state_dict"]
        change(state)
        torch.save(state, folder / "model.pt")
    if conf is not None:
        text = (folder / "config.yaml").read_text()
        assert conf[0] in text
        (folder / "config.yaml").write_text(text.replace(*conf))
    return folder


def valid_difference(ours, theirs, mask):
    return (ours - theirs).abs()[mask].max()


def frames(golden):
    return torch.arange(golden["speech"].shape[1]) < golden["lengths"][:, None]


@torch.no_grad()
def test_encoder_adaptor_and_ctc_are_those_of_fun_asr(converted, golden):
    model, mask = converted[0], frames(golden)
    encoded = model.encode_audio(golden["speech"], mask)
    adapted, _ = model.multi_modal_projector(encoded.last_hidden_state, mask)
    logits, _ = model.ctc_logits(encoded_audio=encoded)
    assert valid_difference(encoded.last_hidden_state, golden["encoder_out"], mask) <= 1e-5
    assert valid_difference(adapted, golden["adaptor_out"], mask) <= 1e-5
    assert valid_difference(logits.log_softmax(-1).exp(), golden["ctc_log_probs"].exp(), mask) <= 1e-5


@torch.no_grad()
def test_features_of_a_waveform_lead_to_fun_asr_s_encoder_output(converted, golden):
    """FunASR scales the waveform by 2 ** 15, transformers does not: the first layer norm takes the constant away."""
    model, processor = converted
    waveforms = [golden[f"wave_{i}"].numpy().astype(np.float32) / 32768 for i in range(3)]
    inputs = processor(audio=waveforms)
    encoded = model.encode_audio(inputs["input_features"], inputs["input_features_mask"])
    assert inputs["input_features_mask"].sum(-1).tolist() == golden["lengths"].tolist()
    assert (inputs["input_features"] - golden["speech"])[0].abs().min() > 20
    assert valid_difference(encoded.last_hidden_state, golden["encoder_out"], frames(golden)) <= 1e-4


@torch.no_grad()
def test_prompt_logits_and_generated_ids_are_those_of_fun_asr(converted, golden):
    """The language model gets the first ceil(T / 8) frames, and the prompt is the same token for token."""
    model, processor = converted
    wave = golden["wave_0"].numpy().astype(np.float32) / 32768
    inputs = processor.apply_transcription_request(wave, language="中文", keywords=["天气"], itn=False)
    is_audio = inputs["input_ids"] == model.config.audio_token_id
    assert model.config.audio_token_divisor == 8
    assert is_audio.sum() == golden["num_audio_tokens"].item() == -(-golden["lengths"][0].item() // 8)
    assert torch.equal(inputs["input_ids"][~is_audio], golden["source_ids"][~is_audio])
    assert (model(**inputs).logits[:, -8:] - golden["lm_logits"]).abs().max() <= 1e-4
    generated = model.generate(**inputs, max_new_tokens=golden["generated"].shape[1])
    assert torch.equal(generated[:, inputs["input_ids"].shape[1] :], golden["generated"])


def test_ctc_tokenizer_is_that_of_fun_asr(converted, golden):
    model, processor = converted
    tokenizer = processor.ctc_tokenizer
    for index, text in enumerate(TEXTS):
        ids = tokenizer(text).input_ids
        assert ids == golden[f"ctc_ids_{index}"].tolist()
        assert tokenizer.decode([*ids, tokenizer.pad_token_id], skip_special_tokens=True) == text
    assert len(tokenizer) == model.config.ctc_config.vocab_size == golden["ctc_log_probs"].shape[-1]
    assert model.ctc_head.blank == tokenizer.pad_token_id == len(tokenizer) - 1


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_logits_are_those_of_transformers(transformers_folder, tmp_path, implementation):
    from_fun_asr(transformers_folder, tmp_path)
    ours = NestAsrForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=implementation)
    theirs = FunAsrNanoForConditionalGeneration.from_pretrained(
        transformers_folder, attn_implementation=implementation
    ).eval()
    inputs = FunAsrNanoProcessor.from_pretrained(transformers_folder).apply_transcription_request(
        waves(1.3, 0.6, 2.1), language="zh", keywords=["甲"], **PADDED
    )
    mask = inputs["attention_mask"].bool()
    assert not mask.all()
    positions = text_positions(mask)  # theirs counts padding too, which moves the rotary embedding's last bits
    assert valid_difference(ours(**inputs).logits, theirs(**inputs, position_ids=positions).logits, mask) <= 1e-5
    assert ours.ctc_head is None and ours.config.audio_token_divisor == 1


@pytest.mark.parametrize("beams", [1, 3])
def test_generated_ids_are_those_of_transformers(transformers_folder, tmp_path, beams):
    from_fun_asr(transformers_folder, tmp_path)
    ours = NestAsrForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager")
    theirs = FunAsrNanoForConditionalGeneration.from_pretrained(
        transformers_folder, attn_implementation="eager"
    ).eval()
    processor = FunAsrNanoProcessor.from_pretrained(transformers_folder)
    inputs = processor.apply_transcription_request(waves(1.3, 0.6, 2.1), **PADDED)
    settings = {"max_new_tokens": 10, "num_beams": beams, "do_sample": False, "pad_token_id": 0, "eos_token_id": 2}
    assert torch.equal(ours.generate(**inputs, **settings), theirs.generate(**inputs, **settings))


def test_requests_are_those_of_transformers_processor(transformers_folder, tmp_path):
    from_fun_asr(transformers_folder, tmp_path)
    request = {"language": "zh", "prompt": "meeting", "keywords": [["a", "b"], ["c"]]}
    theirs = FunAsrNanoProcessor.from_pretrained(transformers_folder).apply_transcription_request(
        waves(1.3, 0.6), **request, **PADDED
    )
    ours = NestAsrProcessor.from_pretrained(tmp_path).apply_transcription_request(waves(1.3, 0.6), **request)
    for name in ("input_ids", "attention_mask", "input_features", "input_features_mask"):
        assert torch.equal(ours[name], theirs[name].to(ours[name].dtype)), name


def test_without_ctc_tensors_there_is_no_ctc_head_and_it_is_said(tmp_path, caplog):
    def drop(state):
        for key in [key for key in state if key.startswith(("ctc.", "ctc_decoder."))]:
            del state[key]

    caplog.set_level("INFO")
    model = from_fun_asr(copy_of_model(tmp_path / "source", drop), tmp_path / "converted")
    assert model.ctc_head is None and "no CTC tensors" in caplog.text
    assert NestAsrProcessor.from_pretrained(tmp_path / "converted").ctc_tokenizer is None


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("audio_encoder.encoders.0.norm3.weight", "norm3"),
        ("audio_encoder.encoders.7.norm1.weight", "layers.8"),
        ("llm.model.layers.0.self_attn.q_proj.lora_A", "lora_A"),
        ("segment_embedding.weight", "segment_embedding"),
    ],
)
def test_an_unknown_tensor_is_an_error(tmp_path, key, message):
    source = copy_of_model(tmp_path / "source", lambda state: state.update({key: torch.zeros(2)}))
    with pytest.raises(ValueError, match=message):
        from_fun_asr(source, tmp_path / "converted")


@pytest.mark.parametrize("key", ["audio_adaptor.linear1.bias", "ctc_decoder.blocks.4.norm1.weight"])
def test_a_missing_tensor_is_an_error(tmp_path, key):
    source = copy_of_model(tmp_path / "source", lambda state: state.pop(key))
    with pytest.raises(ValueError, match="Missing key"):
        from_fun_asr(source, tmp_path / "converted")


def test_tied_embeddings_that_differ_are_an_error(tmp_path):
    source = copy_of_model(tmp_path / "source", lambda state: state["llm.lm_head.weight"].add_(1))
    with pytest.raises(ValueError, match="ties its embeddings"):
        from_fun_asr(source, tmp_path / "converted")


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        (("SenseVoiceEncoderSmall", "ConformerEncoder"), "audio_encoder"),
        (("sanm_shfit: 0", "sanm_shfit: 2"), "sanm_shfit"),
        (("cmvn_file: null", "cmvn_file: am.mvn"), "cmvn_file"),
    ],
)
def test_a_setting_that_is_not_implemented_is_an_error(tmp_path, conf, message):
    with pytest.raises(ValueError, match=message):
        from_fun_asr(copy_of_model(tmp_path / "source", conf=conf), tmp_path / "converted")


def test_all_frames_are_used_without_the_low_frame_rate(tmp_path):
    source = copy_of_model(tmp_path / "source", conf=("use_low_frame_rate: true", "use_low_frame_rate: false"))
    assert from_fun_asr(source, tmp_path / "converted").config.audio_token_divisor == 1


def test_a_pickle_with_code_is_refused(tmp_path):
    source = copy_of_model(tmp_path / "source")
    torch.save({"state_dict": subprocess.Popen}, source / "model.pt")
    with pytest.raises(Exception, match="(?i)weights.only"):
        from_fun_asr(source, tmp_path / "converted")


def test_layers_of_fun_asr_are_numbered_through():
    table = key_table(50, 20)
    assert our_name("audio_encoder.encoders0.0.norm1.bias", table) == "model.audio_tower.layers.0.input_layernorm.bias"
    assert our_name("audio_encoder.encoders.48.norm2.bias", table).startswith("model.audio_tower.layers.49.post")
    assert our_name("audio_encoder.tp_encoders.19.norm2.bias", table).startswith("model.audio_tower.layers.69.post")
    assert our_name("audio_encoder.after_norm.bias", table) == "model.audio_tower.layers.49.final_layernorm.bias"
    assert our_name("audio_encoder.tp_norm.bias", table) == "model.audio_tower.layers.69.final_layernorm.bias"


def test_the_command_line_writes_a_folder_that_loads(tmp_path):
    command = [sys.executable, "-m", "nest_hf.convert_fun_asr", str(FIXTURES / "model"), str(tmp_path / "out")]
    done = subprocess.run([*command, "--dtype", "bfloat16"], capture_output=True, text=True)
    assert done.returncode == 0 and "with a CTC head" in done.stdout, done.stderr
    assert NestAsrForConditionalGeneration.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    failed = subprocess.run([*command[:3], str(tmp_path), str(tmp_path / "out")], capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stderr.splitlines()[-1].startswith("error: `source`")
