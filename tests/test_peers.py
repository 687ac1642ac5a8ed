"""Peers: a recording says the same alone and in a batch; what a model cannot do is refused before any work."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_asr import tiny_model, tiny_processor, waves
from tiny_peers import fun_asr_nano, parakeet, qwen2_audio, wav2vec2, whisper
from transformers import AutoModelForCTC, AutoProcessor, AutoTokenizer, BertConfig, BertModel

from nest_hf.decoding_settings import DecodingSettings
from nest_hf.handover import write_pointer
from nest_hf.peers import AudioLlmPeer, CtcPeer, Seq2SeqPeer
from nest_hf.recognisers import NestPeer, has_language_model, model_identity, open_recogniser

KINDS = {
    "wav2vec2": (wav2vec2, CtcPeer),
    "parakeet": (parakeet, CtcPeer),
    "whisper": (whisper, Seq2SeqPeer),
    "qwen2_audio": (qwen2_audio, AudioLlmPeer),
    "fun_asr_nano": (fun_asr_nano, AudioLlmPeer),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("peers")
    folders = {name: build(root / name) for name, (build, _) in KINDS.items()}
    processor = tiny_processor()
    tiny_model(processor).save_pretrained(root / "nest_asr")
    processor.save_pretrained(root / "nest_asr")
    return {**folders, "nest_asr": str(root / "nest_asr"), "root": str(root)}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_model_opens_as_its_peer(folders, kind):
    assert isinstance(open_recogniser(folders[kind]), KINDS[kind][1])
    assert has_language_model(folders[kind]) == (kind not in ("wav2vec2", "parakeet"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_recording_says_the_same_alone_and_beside_a_longer_one(folders, kind):
    recogniser = open_recogniser(folders[kind])
    short, long = waves(0.8, 2.1)
    together = recogniser([short, long])
    alone = [recogniser([wave])[0] for wave in (short, long)]
    assert together == alone
    assert any(result.text for result in together)
    assert [result.duration_s for result in together] == [0.8, 2.1]


def test_a_front_end_without_a_mask_never_hears_padding(tmp_path):
    recogniser = open_recogniser(wav2vec2(tmp_path / "base", takes_mask=False))
    short, long = waves(0.8, 2.1)
    assert recogniser([short, long])[0] == recogniser([short])[0]


@pytest.mark.parametrize("kind", ["wav2vec2", "parakeet"])
def test_ctc_text_is_what_transformers_itself_decodes(folders, kind):
    (wave,) = waves(1.5)
    model, processor = (auto.from_pretrained(folders[kind]) for auto in (AutoModelForCTC, AutoProcessor))
    with torch.inference_mode():
        logits = model.eval()(**processor(wave, sampling_rate=16000, return_tensors="pt")).logits
    (expected,) = processor.batch_decode(logits.argmax(-1))
    assert open_recogniser(folders[kind])([wave])[0].text == expected


def test_equal_characters_that_a_blank_parts_stay_two(folders):
    for kind in ("wav2vec2", "parakeet"):
        recogniser = open_recogniser(folders[kind])
        ids = recogniser.processor.tokenizer.convert_tokens_to_ids(["7", "7"])
        assert recogniser._text(ids) == "77"


def test_characters_of_a_ctc_peer_lie_within_the_recording(folders):
    (result,) = open_recogniser(folders["wav2vec2"])(waves(1.5), timestamps=True)
    spoken = [part for part in result.characters if part.text.strip()]
    assert "".join(part.text for part in spoken) == result.text.replace(" ", "")
    assert all(0 <= part.start_s <= part.end_s <= 1.5 + 0.02 for part in spoken)


def test_a_language_changes_what_whisper_is_asked(folders):
    recogniser = open_recogniser(folders["whisper"])
    seen = []
    generate = recogniser.model.generate
    recogniser.model.generate = lambda *args, **options: seen.append(options) or generate(*args, **options)
    recogniser(waves(1.0), language="zh")
    assert seen[0]["language"] == "zh" and seen[0]["task"] == "transcribe"


def test_hotwords_reach_the_prompt_of_an_audio_llm(folders):
    recogniser = open_recogniser(folders["fun_asr_nano"])
    seen = []
    generate = recogniser.model.generate
    recogniser.model.generate = lambda *args, **options: seen.append(options) or generate(*args, **options)
    recogniser(waves(1.0), hotwords=["1234"])
    assert "1234" in recogniser.processor.tokenizer.decode(seen[0]["input_ids"][0])


@pytest.mark.parametrize(
    ("kind", "asked", "message"),
    [
        ("whisper", {"timestamps": True}, "`timestamps` need a CTC head"),
        ("fun_asr_nano", {"timestamps": True}, "`timestamps` need a CTC head"),
        ("wav2vec2", {"language": "zh"}, "`language` has no effect on a wav2vec2"),
        ("whisper", {"hotwords": ["a"]}, "`hotwords` has no effect on a whisper"),
        ("whisper", {"itn": False}, "`itn` has no effect"),
    ],
)
def test_what_a_model_cannot_do_is_refused(folders, kind, asked, message):
    with pytest.raises(ValueError, match=message):
        open_recogniser(folders[kind]).check(**asked)


@pytest.mark.parametrize(("kind", "mode"), [("whisper", "ctc"), ("wav2vec2", "lm"), ("fun_asr_nano", "ctc")])
def test_a_mode_that_a_model_has_not_is_refused(folders, kind, mode):
    with pytest.raises(ValueError, match="`mode`"):
        open_recogniser(folders[kind], settings=DecodingSettings(mode=mode))


def test_more_audio_than_whisper_hears_is_refused_rather_than_cut(folders):
    recogniser = open_recogniser(folders["whisper"])
    with pytest.raises(ValueError, match="5.0 s, and Whisper hears 4 s"):
        recogniser(waves(5.0))
    assert recogniser.max_duration_s == 4.0


def test_an_answer_is_cut_off_at_its_budget_and_says_so(folders):
    settings = DecodingSettings(tokens_per_s=1e-3)
    (result,) = open_recogniser(folders["fun_asr_nano"], settings=settings)(waves(1.0))
    tokens = AutoTokenizer.from_pretrained(folders["fun_asr_nano"])(result.text, add_special_tokens=False).input_ids
    assert result.hit_max_new_tokens and len(tokens) <= 17


def test_a_model_that_does_not_transcribe_is_refused(folders, tmp_path):
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=16, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'bert', which does not transcribe"):
        open_recogniser(str(tmp_path))


def test_weights_may_lack_what_only_training_needs_and_nothing_else(folders, tmp_path):
    shutil.copytree(folders["wav2vec2"], tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    del tensors["wav2vec2.masked_spec_embed"]
    save_file(tensors, path, metadata={"format": "pt"})
    (wave,) = waves(1.0)
    assert open_recogniser(str(path.parent))([wave]) == open_recogniser(folders["wav2vec2"])([wave])
    del tensors["lm_head.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks lm_head.weight: it is no recogniser"):
        open_recogniser(str(path.parent))


def test_a_pointer_opens_the_folder_that_it_names(folders, tmp_path):
    pointer = tmp_path / "final_checkpoint.txt"
    write_pointer(pointer, folders["nest_asr"])
    assert isinstance(open_recogniser(str(pointer)), NestPeer)
    assert model_identity(str(pointer))["sha256"] == model_identity(folders["nest_asr"])["sha256"]


def test_an_adapter_is_merged_onto_its_base(folders, tmp_path):
    peft = pytest.importorskip("peft")
    from nest_hf.modeling_nest_asr import NestAsrForConditionalGeneration

    base = NestAsrForConditionalGeneration.from_pretrained(folders["nest_asr"])
    config = peft.LoraConfig(r=2, target_modules=r"model\.language_model\..*\.q_proj", init_lora_weights=False)
    adapted = peft.get_peft_model(base, config)
    adapted.save_pretrained(tmp_path)
    name = "model.language_model.layers.0.self_attn.q_proj"
    layer = adapted.base_model.model.get_submodule(name)
    delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
    expected = layer.base_layer.weight + delta

    recogniser = open_recogniser(str(tmp_path))
    weight = recogniser.decoder.model.get_submodule(name).weight
    torch.testing.assert_close(weight, expected.detach())
    assert isinstance(recogniser, NestPeer) and len(model_identity(str(tmp_path))["sha256"]) == 2


def test_weights_decide_the_identity_of_a_model(folders):
    identities = {model_identity(folders[kind])["sha256"][0] for kind in ("wav2vec2", "whisper", "nest_asr")}
    assert len(identities) == 3


def test_our_model_without_ctc_refuses_timestamps_before_any_work(tmp_path):
    processor = tiny_processor(ctc=False)
    tiny_model(processor).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    recogniser = open_recogniser(str(tmp_path))
    with pytest.raises(ValueError, match="`timestamps` need a CTC head"):
        recogniser.check(timestamps=True)
    assert recogniser.sampling_rate == 16000 and np.isfinite(recogniser.decoder.frame_s)
