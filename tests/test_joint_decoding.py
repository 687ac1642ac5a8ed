"""Language model and CTC head choose a text together, hotwords among them."""

import itertools
import math

import numpy as np
import pytest
import torch
from ctc_posteriors import CHARACTERS, character_tokenizer, spike_path, spikes
from test_transcription import hearing_model, say
from tiny_asr import tiny_model, tiny_processor, waves

from nest_hf.asr_prompt import Request
from nest_hf.batch_decoding import BatchDecoder
from nest_hf.ctc_decoding import collapse
from nest_hf.decoding_settings import DecodingSettings
from nest_hf.hotwords import FoundHotword, HotwordFilter
from nest_hf.joint_decoding import CtcScorer, choose_texts
from nest_hf.prompt_heads import PromptHeads
from nest_hf.transcription import Transcriber

WORDS = ["一二", "三四五", "五", "二三", "四四一", "一五"]


# ---- CTC


def test_a_text_is_as_likely_as_all_its_alignments_together():
    tokenizer = character_tokenizer("一二")
    log_probs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    scorer = CtcScorer(log_probs, tokenizer, blank_id=0)
    paths = torch.tensor(list(itertools.product(range(4), repeat=5)))
    totals = log_probs[torch.arange(5), paths].sum(-1)
    texts = {"": [], "一": [2], "一一": [2, 2], "二一": [3, 2], "一二一": [2, 3, 2]}
    collapsed = collapse(paths, blank_id=0)
    expected = [torch.logsumexp(totals[[ids == tokens for ids in collapsed]], 0).item() for tokens in texts.values()]
    assert scorer([*texts]) == pytest.approx(expected, abs=1e-4)
    assert scorer(["二一", "，二 一。"]) == pytest.approx([expected[3]] * 2, abs=1e-4)  # punctuation is not heard
    assert scorer(["一二一二一二"]) == [-math.inf]


def test_what_the_ctc_head_cannot_write_is_judged_by_what_is_around_it():
    tokenizer = character_tokenizer()
    ids = tokenizer("今天二三八气")["input_ids"]
    log_probs = spikes(spike_path(ids, range(2, 20, 3), 22), len(CHARACTERS) + 2, peak=0.95)
    scorer = CtcScorer(log_probs, tokenizer, blank_id=0)
    right, other, longer = scorer(["今天 2.38 气", "公园 2.38 气", "今天 2.38 气谢"])
    assert right > other + 3 and right > longer + 1
    assert right > scorer(["今天气"])[0] + 3  # something is said there


@pytest.mark.parametrize("seed", range(20))
def test_a_hotword_goes_where_it_is_heard(seed):
    rng = np.random.default_rng(seed)
    tokenizer = character_tokenizer()
    first, word, last = ("".join(rng.choice(list(CHARACTERS), n)) for n in rng.integers([1, 2, 1], [8, 6, 8]))
    said = first + word + last
    log_probs = spikes(
        spike_path(tokenizer(said)["input_ids"], range(2, 2 + 3 * len(said), 3), 3 * len(said) + 4),
        len(CHARACTERS) + 2, peak=0.8, seed=seed,
    )  # fmt: skip
    scorer = CtcScorer(log_probs, tokenizer, blank_id=0)
    wrong = ["".join(rng.choice(list(CHARACTERS), max(0, len(word) + change))) for change in (-1, 0, 1)]
    for end in (None, 2 + 3 * len(first + word) - 3):
        hotword = FoundHotword(word, end=end)
        for heard in wrong:
            assert scorer.with_hotword(first + heard + last, hotword)[0] == said
        assert scorer.with_hotword(f"{first}，{wrong[1]}。{last}", hotword)[0] == f"{first}，{word}。{last}"
        assert scorer.with_hotword("", hotword) == (word, pytest.approx(scorer([word])[0], abs=1e-4))


def test_a_hotword_is_tried_near_its_end_alone():
    tokenizer = character_tokenizer()
    said = "今天气很好我们去公园谢" * 4
    frames = range(2, 2 + 3 * len(said), 3)
    log_probs = spikes(spike_path(tokenizer(said)["input_ids"], frames, 3 * len(said) + 4), len(CHARACTERS) + 2)
    scorer, tried = CtcScorer(log_probs, tokenizer, blank_id=0), []
    of_tokens = scorer.of_tokens
    scorer.of_tokens = lambda rows: tried.append(len(rows)) or of_tokens(rows)
    for place in (0, 11, 22, 33):
        heard = said[:place] + "今八气" + said[place + 3 :]
        assert scorer.with_hotword(heard, FoundHotword("今天气", end=2 + 3 * (place + 2))) == (
            said,
            pytest.approx(scorer([said])[0], abs=1e-3),
        )
    assert max(tried) <= 15


def test_several_hotwords_come_into_one_text():
    tokenizer = character_tokenizer()
    said = "我们去公园谢谢今天好"
    ids = tokenizer(said)["input_ids"]
    log_probs = spikes(spike_path(ids, range(2, 32, 3), 34), len(CHARACTERS) + 2, peak=0.8)
    scorer = CtcScorer(log_probs, tokenizer, blank_id=0)
    words = [FoundHotword("公园"), FoundHotword("今天"), FoundHotword("八八")]
    assert scorer.with_hotwords("我们去哈园谢谢三天好", words[:2], bonus=0.0)[-1] == said
    options = {"ctc_weight": 1.0, "hotwords": [words], "hotword_bonus": 0.0}
    assert choose_texts([[["我们去哈园谢谢三天好"]]], [scorer], **options) == [said]


# ---- the language model


class Heard(HotwordFilter):
    """Of the list as many words as the number of a recording."""

    def __call__(self, log_probs, lengths, **limits):
        return [[FoundHotword(word, 0.0) for word in WORDS[:number]] for number in range(len(log_probs))]


@pytest.mark.parametrize("kind", ["nest", "fun_asr_nano_encoder"])
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("shares_heads", [True, False])
def test_answers_are_as_likely_as_in_training(kind, num_beams, shares_heads, monkeypatch):
    processor = tiny_processor(kind=kind)
    model = tiny_model(processor, kind)
    recordings = waves(0.3, 1.7, 0.9, 1.3, 0.5)
    texts = [["一二", "", "三"], ["五四三二一" * 3], ["一", "二二"], ["三四", "一"], ["二"]]
    settings = DecodingSettings(num_beams=num_beams, ctc_weight=0.5, guard=None)
    decoder, kept = BatchDecoder(model, processor, settings), []
    generate = decoder._generate
    monkeypatch.setattr(decoder, "_generate", lambda *args: kept.append(generate(*args)) or kept[0])
    monkeypatch.setattr(decoder, "_choose", lambda *args: dict.fromkeys(range(5), ""))
    heads = PromptHeads(model)
    heads.is_possible &= shares_heads
    hotwords = Heard(WORDS, processor.ctc_tokenizer, blank_id=0)
    decoder(recordings, [Request()] * 5, hotwords=hotwords, prompt_heads=heads)
    assert all(len(row) == num_beams for row in kept[0].texts)
    monkeypatch.setattr("nest_hf.joint_decoding.FEW_ROWS", 2)  # more than one part
    scores = kept[0].scorer(texts)
    for number, (wave, row) in enumerate(zip(recordings, texts, strict=True)):
        for text, score in zip(row, scores[number], strict=True):
            inputs = processor(wave, transcripts=[text], keywords=[WORDS[:number]] if number else None)
            with torch.no_grad():
                expected = -model(**inputs, ctc_weight=0.0).lm_loss_sum.item()
            assert score == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_the_choice_is_the_same_alone_and_in_a_batch(num_beams):
    processor = tiny_processor()
    model = tiny_model(processor)
    settings = DecodingSettings(num_beams=num_beams, ctc_beam_size=3, ctc_weight=0.4, guard=None)
    recordings, options = waves(0.3, 1.7, 0.9, 1.3), {"hotwords": WORDS, "timestamps": True}
    together = Transcriber(model, processor, settings=settings)(recordings, **options)
    alone = [Transcriber(model, processor, settings=settings)([wave], **options)[0] for wave in recordings]
    assert [result.text for result in together] == [result.text for result in alone]
    assert any(result.text != result.lm_text for result in together)


def test_each_head_alone_at_the_ends_of_the_weight():
    processor = tiny_processor()
    model = tiny_model(processor)
    recordings = waves(0.8, 1.7, 0.9)
    for result in Transcriber(model, processor, settings=DecodingSettings(ctc_weight=1.0))(recordings):
        assert result.text == result.ctc_text
    for result in Transcriber(model, processor, settings=DecodingSettings(ctc_weight=0.0))(recordings):
        assert result.text in (result.lm_text, result.ctc_text) and result.decisions[0].lm_text == result.lm_text


# ---- hotwords by CTC alone


def test_hotwords_count_by_ctc_alone():
    processor = tiny_processor(texts=("一二三四五",))
    model = hearing_model(processor)
    encode = model.encode_audio

    def unsure(features, mask):
        encoded = encode(features, mask)
        encoded.last_hidden_state = encoded.last_hidden_state / 4  # 20 : 1
        return encoded

    model.encode_audio = unsure
    recordings = [say("一二三四", processor), say("五五五五", processor)]

    def texts(bonus, hotwords):
        settings = DecodingSettings(mode="ctc", hotword_bonus=bonus, hotword_threshold=-1.5)
        results = Transcriber(model, processor, settings=settings)(recordings, hotwords=hotwords)
        assert [result.ctc_text for result in results] == ["一二三四", "五五五五"]
        return [result.text for result in results]

    assert texts(5.0, ["二五四"]) == ["一二五四", "五五五五"]
    assert texts(0.0, ["二五四"]) == texts(5.0, ["三一二三一二三"]) == texts(5.0, None) == ["一二三四", "五五五五"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ctc_weight": 1.1}, "`ctc_weight` is 1.1"),
        ({"ctc_weight": -0.1}, "`ctc_weight` is -0.1"),
        ({"hotword_bonus": -1.0}, "`hotword_bonus`"),
        ({"hotword_bonus": math.nan}, "`hotword_bonus`"),
        ({"mode": "ctc", "ctc_weight": 0.5}, "no language model"),
    ],
)
def test_bad_weights_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        DecodingSettings(**fields)


def test_without_a_ctc_head_there_is_no_choice():
    processor = tiny_processor(ctc=False)
    with pytest.raises(ValueError, match="`ctc_weight` is 0.5, but this model has no CTC head"):
        Transcriber(tiny_model(processor), processor, settings=DecodingSettings(ctc_weight=0.5))
