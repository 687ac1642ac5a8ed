"""A minute of speech in pieces is heard as its parts alone, by a recogniser trained for the purpose."""

import numpy as np
import pytest
import torch
from spoken_tones import CHARACTERS, RATE, utterance
from transformers import Wav2Vec2Processor, set_seed

from nest_hf import NestConfig, NestFeatureExtractor, transcription
from nest_hf.ctc_tokenizer import build_ctc_tokenizer
from nest_hf.decoding_settings import DecodingSettings
from nest_hf.error_rates import character_errors
from nest_hf.modeling_nest import NestForCTC
from nest_hf.transcription import Transcriber
from nest_hf.vad import merge_segments

KNOWN = CHARACTERS[:12]
STILL = {"dropout": 0.0, "hidden_dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0}


def some_text(rng) -> str:
    return "".join(rng.choice(list(KNOWN), rng.integers(2, 9)))


@pytest.fixture(scope="module")
def trained():
    set_seed(0)
    tokenizer, rng = build_ctc_tokenizer([KNOWN]), np.random.default_rng(0)
    sizes = {"num_hidden_layers": 2, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    model, extractor = NestForCTC(NestConfig.from_preset("tiny", **sizes, **STILL)).train(), NestFeatureExtractor()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for step in range(240):
        # one utterance, then up to four in a row: what is decoded later is no longer than what is learned
        groups = [[some_text(rng) for _ in range(rng.integers(1, 2 + min(3, step // 40)))] for _ in range(12)]
        waves = [np.concatenate([utterance(text, rng) for text in texts]) for texts in groups]
        features = extractor(waves, sampling_rate=RATE, return_tensors="pt")
        ids = [torch.tensor(row) for row in tokenizer(["".join(texts) for texts in groups]).input_ids]
        labels = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-100)
        model(**features, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, Wav2Vec2Processor(extractor, tokenizer)


def loud_segments(wave, *, sampling_rate, max_segment_s):
    """Voice activity of tones, which a detector of voices does not hear."""
    size = sampling_rate // 50
    loud = np.abs(wave[: len(wave) // size * size].reshape(-1, size)).max(1) > 0.02
    edges = np.flatnonzero(np.diff(np.concatenate([[False], loud, [False]]).astype(int))) * size
    pieces = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    return merge_segments(pieces, len(wave), sampling_rate=sampling_rate, max_segment_s=max_segment_s)


@pytest.mark.slow
@pytest.mark.parametrize("long_audio", ["pauses", "windows", "vad"])
def test_a_minute_in_pieces_is_heard_as_its_parts(trained, monkeypatch, long_audio):
    monkeypatch.setattr(transcription, "speech_segments", loud_segments)
    rng = np.random.default_rng(1)
    texts, parts = [], []
    while sum(map(len, parts)) < 3 * 60 * RATE:
        texts.append(some_text(rng))
        parts.append(utterance(texts[-1], rng))
    third = len(parts) // 3
    groups = [range(third), range(third, 2 * third), range(2 * third, len(parts))]
    settings = DecodingSettings(mode="ctc", long_audio=long_audio, max_window_s=10.0, overlap_s=2.0)
    transcriber = Transcriber(*trained, settings=settings)
    alone = [result.text for result in transcriber(parts)]
    whole = transcriber([np.concatenate([parts[i] for i in group]) for group in groups])
    assert all(len(result.windows) >= 6 for result in whole)

    references = ["".join(texts[i] for i in group) for group in groups]
    alone = ["".join(alone[i] for i in group) for group in groups]
    cer = [
        character_errors(found, references, level="raw").result()["cer"]
        for found in (alone, [result.text for result in whole])
    ]
    assert cer[0] < 0.02  # or there is nothing to lose
    assert cer[1] <= cer[0] + 0.01
