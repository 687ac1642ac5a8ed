"""Heads of prompts: computed once for all recordings, and nobody can tell from the answers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_asr import tiny_model, tiny_processor, waves

from nest_hf.asr_prompt import Request
from nest_hf.batch_decoding import BatchDecoder, DecodingSettings
from nest_hf.hotwords import FoundHotword, HotwordFilter
from nest_hf.prompt_heads import PromptHeads
from nest_hf.transcription import Transcriber

WORDS = ["一二", "三四五", "五", "二三", "四四一", "一五"]


class Heard(HotwordFilter):
    """Of the list as many words as the number of a recording."""

    def __call__(self, log_probs, lengths, **limits):
        return [[FoundHotword(word, 0.0) for word in WORDS[:number]] for number in range(len(log_probs))]


def without_heads(model):
    heads = PromptHeads(model)
    heads.is_possible = False
    return heads


def observed(model):
    """`generate` notes its answers' token ids and whether it was given a cache, the language model what it reads."""
    generate, notes = model.generate, SimpleNamespace(answers=[], caches=[], shapes=[])

    def noting(input_ids, past_key_values, **kwargs):
        sequences = generate(input_ids=input_ids, past_key_values=past_key_values, **kwargs)
        notes.answers.append(sequences[:, input_ids.shape[1] :].tolist())
        notes.caches.append(past_key_values is not None)
        return sequences

    model.generate = noting
    note = lambda module, args, kwargs: notes.shapes.append(kwargs["inputs_embeds"].shape[:2])  # noqa: E731
    model.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    return notes


@pytest.mark.parametrize("kind", ["nest", "fun_asr_nano_encoder"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_answers_are_the_same_token_ids_as_without(kind, num_beams):
    processor = tiny_processor(kind=kind)
    model = tiny_model(processor, kind)
    notes = observed(model)
    decoder = BatchDecoder(model, processor, DecodingSettings(num_beams=num_beams, guard=None))
    recordings = waves(0.3, 1.7, 0.9, 1.3, 0.5, 2.0, 1.1)
    requests = [Request(), Request("中文"), Request("中文"), Request(), Request(prompt="一"), Request(), Request()]
    for hotwords in (Heard(WORDS, processor.ctc_tokenizer, blank_id=0), WORDS[:2], ()):
        for heads in (PromptHeads(model), without_heads(model)):
            decoder(recordings, requests, hotwords=hotwords, prompt_heads=heads)
    assert notes.caches == [True, False] * 3
    assert notes.answers[::2] == notes.answers[1::2]
    assert len({tuple(row) for answers in notes.answers for row in answers}) > len(recordings)


def test_what_prompts_share_is_read_once_in_a_call_of_several_batches():
    processor = tiny_processor()
    model = tiny_model(processor)
    notes = observed(model)
    transcriber = Transcriber(model, processor, settings=DecodingSettings(guard=None, batch_duration_s=20.0))
    recordings = waves(*[1.0] * 8)
    calls = []
    for hotwords in (WORDS[:3], None):
        notes.shapes.clear()
        transcriber(recordings, hotwords=hotwords and [*hotwords])
        calls.append([tuple(shape) for shape in notes.shapes if shape[1] > 1])
    prompt = processor.prompts([Request()])[0]
    (head_with, *rest_with), (head, *rest) = calls
    assert head == (1, prompt.tolist().index(processor.audio_token_id))
    assert rest == [(4, len(prompt) - 1 - head[1] + 13)] * 2  # 13 audio tokens
    assert len(rest_with) == 2 and head_with[0] == 1 and head_with[1] > head[1]


def test_a_head_that_no_other_recording_shares_is_read_with_its_prompt():
    processor = tiny_processor()
    model = tiny_model(processor)
    notes = observed(model)
    decoder = BatchDecoder(model, processor, DecodingSettings(guard=None))
    decoder(waves(1.0), [Request()])
    decoder(waves(1.0, 1.0), [Request(prompt="一"), Request(prompt="二")])
    assert notes.caches == [False, False]


def test_a_language_model_with_a_sliding_window_reads_whole_prompts():
    processor = tiny_processor()
    text = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    model = tiny_model(processor, text=text)
    notes = observed(model)
    Transcriber(model, processor, settings=DecodingSettings(guard=None))(waves(1.0, 1.2), hotwords=WORDS)
    assert notes.caches == [False]


def test_a_head_ends_where_prompts_differ_even_within_a_token():
    def prompts(requests):  # of hotwords that begin with 一, the first is a token with the bracket: 9, not 7
        heads = {"一": [1, 2, 9], "二": [1, 2, 7, 12], "0": [1, 2, 7, 10]}
        return [np.array([*(heads[r.keywords[0][0]] if r.keywords else [1, 2]), 5, 3]) for r in requests]

    decoder = SimpleNamespace(processor=SimpleNamespace(prompts=prompts, audio_token_id=5))
    requests = [Request(keywords=("一二",)), Request(keywords=("二",)), Request()]
    heads = BatchDecoder._heads(decoder, requests, prompts(requests))
    assert heads == [(1, 2), (1, 2, 7), (1, 2)]


def test_rows_of_the_cache_are_those_of_their_heads_alone():
    processor = tiny_processor()
    model = tiny_model(processor)
    heads = PromptHeads(model)
    with torch.inference_mode():
        used, cache = heads([(4, 5, 6, 7), (8, 9), (4, 5, 6, 7), (8, 9), (7,)], num_beams=2)
        assert used == [(4, 5, 6, 7), (8, 9), (4, 5, 6, 7), (8, 9), ()]
        again, shorter = heads([(8, 9)])
        assert again == [(8, 9)] and shorter.get_seq_length() == 2
        for ids, rows in (((4, 5, 6, 7), [0, 1, 4, 5]), ((8, 9), [2, 3, 6, 7])):
            alone = model.model.language_model(torch.tensor([ids]), use_cache=True).past_key_values
            for whole, part in zip(cache.layers, alone.layers, strict=True):
                for row in rows:
                    torch.testing.assert_close(whole.keys[row, :, -len(ids) :], part.keys[0])
                    torch.testing.assert_close(whole.values[row, :, -len(ids) :], part.values[0])
