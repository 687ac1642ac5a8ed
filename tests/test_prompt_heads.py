"""Heads of prompts: computed once for all recordings, and nobody can tell from the answers."""

from types import SimpleNamespace

import pytest
import torch
from tiny_asr import tiny_model, tiny_processor, waves
from transformers.cache_utils import DynamicLayer

from nest_hf.asr_prompt import Request
from nest_hf.batch_decoding import BatchDecoder
from nest_hf.decoding_settings import DecodingSettings
from nest_hf.hotwords import FoundHotword, HotwordFilter
from nest_hf.prompt_heads import PromptHeads, RoomyLayer
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
    before = prompt.tolist().index(processor.audio_token_id)
    audio = (4, len(prompt) - 1 - before + 13)  # 13 audio tokens
    assert head == (1, before)
    assert rest == [audio] * 2
    # hotwords are read before the audio, and from there on all prompts are alike
    assert head_with[0] == 1 and head_with[1] > before
    assert [shape for shape in rest_with if shape[0] > 1] == [audio] * 2


def test_a_prompt_with_many_hotwords_pads_no_other_one():
    processor = tiny_processor()
    model = tiny_model(processor)
    notes = observed(model)
    decoder = BatchDecoder(model, processor, DecodingSettings(guard=None))
    decoder(waves(*[1.0] * 6), [Request()] * 6, hotwords=Heard(WORDS, processor.ctc_tokenizer, blank_id=0))
    read = {shape[0]: shape[1] for shape in notes.shapes if shape[1] > 1}
    befores = [
        tuple(ids[: ids.tolist().index(processor.audio_token_id)])
        for ids in processor.prompts([Request(keywords=tuple(WORDS[:number])) for number in range(6)])
    ]
    # every different beginning once
    assert read[1] == len({ids[:end] for ids in befores for end in range(1, 1 + len(ids))})
    assert read[6] < 20


def test_prompts_that_share_nothing_or_are_alone_are_read_as_they_are():
    processor = tiny_processor()
    model = tiny_model(processor)
    notes = observed(model)
    decoder = BatchDecoder(model, processor, DecodingSettings(guard=None))
    decoder(waves(1.0), [Request()])
    assert notes.caches == [False]
    heads = PromptHeads(model)
    with torch.inference_mode():
        assert heads([(4, 5), (6, 5)]) is None
        assert heads([(4, 5), (4, 6)]) is not None
        assert heads([(4, 5)]).get_seq_length() == 2  # 4 is there from before


def test_long_prompts_that_share_little_are_read_as_they_are(monkeypatch):
    processor = tiny_processor()
    model = tiny_model(processor)
    monkeypatch.setattr("nest_hf.prompt_heads.FEW_PAIRS", 16)
    heads = PromptHeads(model)
    own = [(4, *[5 + number] * 6) for number in range(8)]  # 49 nodes in a row, against 8 rows of 7
    with torch.inference_mode():
        assert heads([(4, 5, 6), (4, 5, 7)]) is not None
        assert heads(own) is None
        assert heads([(4, 5)]).get_seq_length() == 2  # which stays as it was
        assert heads(own[:1] * 8) is not None  # long, too, but all of them the same


def test_a_language_model_with_a_sliding_window_reads_whole_prompts():
    processor = tiny_processor()
    text = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    model = tiny_model(processor, text=text)
    notes = observed(model)
    Transcriber(model, processor, settings=DecodingSettings(guard=None))(waves(1.0, 1.2), hotwords=WORDS)
    assert notes.caches == [False]


def test_rows_of_the_cache_are_those_of_their_heads_alone():
    processor = tiny_processor()
    model = tiny_model(processor)
    heads = PromptHeads(model)
    batches = [
        [(4, 5, 6, 7), (8, 9), (4, 5, 6, 7), (8, 9), (4, 5, 7), (7,)],
        [(4, 5, 6, 9, 9), (8, 9, 4), (5, 5)],  # goes on where the first one was
        [(4, 5, 6, 9)],
    ]
    with torch.inference_mode():
        for batch in batches:
            cache = heads(batch, num_beams=2)
            assert cache.get_seq_length() == max(map(len, batch))
            for number, ids in enumerate(batch):
                alone = model.model.language_model(torch.tensor([ids]), use_cache=True).past_key_values
                for whole, part in zip(cache.layers, alone.layers, strict=True):
                    for row in (2 * number, 2 * number + 1):
                        torch.testing.assert_close(whole.keys[row, :, -len(ids) :], part.keys[0])
                        torch.testing.assert_close(whole.values[row, :, -len(ids) :], part.values[0])


def test_only_what_prompts_share_stays_for_the_next_batch():
    processor = tiny_processor()
    heads = PromptHeads(tiny_model(processor))
    with torch.inference_mode():
        for number in range(10, 30):
            heads([(4, 5, number), (4, 5, number + 1)])
    assert len(heads.nodes) == heads.layers[0][0].shape[2] == 2


def test_a_layer_with_room_is_a_dynamic_layer_that_does_not_move():
    torch.manual_seed(0)
    keys, values = torch.randn(2, 3, 2, 4, 5)
    plain, roomy = DynamicLayer(), RoomyLayer(keys, values, room=6)
    plain.update(keys, values)
    places = set()
    order = torch.tensor([2, 0, 0])
    steps = [
        lambda layer: None,
        lambda layer: layer.reorder_cache(order),
        lambda layer: layer.crop(-2),
        lambda layer: layer.batch_select_indices(order),  # from here on without room
        lambda layer: layer.reorder_cache(order),
    ]
    for number, step in enumerate(steps):
        new_keys, new_values = torch.randn(2, 3, 2, 2, 5)
        for layer in (plain, roomy):
            step(layer)
            held = layer.update(new_keys, new_values)
        assert torch.equal(held[0], plain.keys) and torch.equal(held[1], plain.values)
        assert roomy.get_seq_length() == plain.get_seq_length()
        if number in (1, 2):
            places.add(held[0].data_ptr())
    assert len(places) == 1


def test_a_full_layer_goes_on():
    keys = torch.randn(1, 1, 3, 2)
    layer = RoomyLayer(keys, keys, room=1)
    for length in (4, 5, 6):
        held, _ = layer.update(keys[:, :, :1], keys[:, :, :1])
        assert held.shape[2] == length and torch.equal(held[:, :, -1:], keys[:, :, :1])
    assert torch.equal(held[:, :, :3], keys)
