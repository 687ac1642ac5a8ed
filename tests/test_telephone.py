"""The telephone channel: draws, levels, the band, and the same bits wherever it runs."""

import io
import json
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile

from nest_hf.data import AudioError, TelephoneChannel
from nest_hf.data.pretraining import PretrainingDataset
from nest_hf.data.speech_level import active_frames, active_level_dbov, frame_powers
from nest_hf.data.telephone import PRESETS, ChannelDraw
from nest_hf.data.telephone_steps import STEPS, BandPass

ROOT = Path(__file__).parents[1]


def speech(seed: int, seconds: float = 3.0, rate: int = 16000) -> np.ndarray:
    """Bursts of coloured noise with pauses between them, on 16-bit values."""
    rng = np.random.default_rng(seed)
    count = int(seconds * rate)
    noise = np.convolve(rng.standard_normal(count), np.hanning(7) / 4, "same")
    syllables = np.repeat(rng.uniform(0, 1, count // 2000 + 1) ** 2 * (rng.random(count // 2000 + 1) < 0.7), 2000)
    wave = 0.1 * noise * syllables[:count]
    return (np.rint(wave * 32768) / 32768).astype(np.float32)


def row(seed: int, rate: int = 16000) -> dict:
    return {
        "id": f"utt{seed}",
        "audio": {"array": speech(seed, rate=rate), "sampling_rate": rate, "path": None},
        "offset": 0.0,
        "duration": 3.0,
    }


ROWS = [row(seed) for seed in range(12)]
RESPONSE = {"id": "room", "audio": {"array": np.r_[np.zeros(40), 1, 0.5 ** np.arange(1, 400)].astype(np.float32),
                                    "sampling_rate": 16000}}  # fmt: skip


def channel_of(preset: str) -> TelephoneChannel:
    return TelephoneChannel.from_preset(preset).with_noise(ROWS, noise=ROWS, impulse_responses=[RESPONSE])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
def test_length_and_type_stay_and_the_result_lies_on_16_bit_values(preset, rate):
    wave = speech(3, 1.2345, rate)
    before = wave.copy()
    call, draw = channel_of(preset)(wave, sampling_rate=rate, id="utt3")
    np.testing.assert_array_equal(wave, before)
    assert call.shape == wave.shape and call.dtype == np.float32
    np.testing.assert_array_equal(call * 32768, np.rint(call * 32768))
    assert len(draw.steps) == len(PRESETS[preset])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_draw_depends_on_seed_epoch_and_id_alone(preset):
    channel = channel_of(preset)
    arguments = {"sampling_rate": 16000, "seed": 5, "id": "utt1", "epoch": 2}
    call, draw = channel(speech(1), **arguments)
    channel(speech(2), sampling_rate=16000, id="utt2")  # another recording between
    again, same = channel_of(preset)(speech(1), **arguments)
    assert draw == same
    np.testing.assert_array_equal(call, again)


def test_another_seed_epoch_or_id_draws_anew():
    channel = channel_of("physical")
    arguments = {"sampling_rate": 16000, "seed": 5, "id": "utt1", "epoch": 2}
    draws = [channel.draw(48000, **{**arguments, **change}).steps
             for change in ({}, {"seed": 6}, {"id": "utt2"}, {"epoch": 3})]  # fmt: skip
    assert len({json.dumps(steps) for steps in draws}) == 4


@pytest.mark.parametrize("preset", PRESETS)
def test_a_stored_draw_gives_the_same_call(preset):
    channel = channel_of(preset)
    call, draw = channel(speech(1), sampling_rate=16000, id="utt1")
    stored = ChannelDraw.from_json(draw.to_json())
    assert stored == draw
    np.testing.assert_array_equal(channel.apply(speech(1), stored), call)


def test_a_step_draws_the_same_alone_and_in_the_chain():
    chain = channel_of("seed_order").draw(48000, sampling_rate=16000, id="utt1").steps
    for name in ("codec", "packet_loss", "babble"):
        alone = channel_of(f"only_{name}").draw(48000, sampling_rate=16000, id="utt1").steps
        assert [s for s in alone if s["step"] == name] == [s for s in chain if s["step"] == name]


def test_an_utterance_is_never_its_own_babble():
    channel = channel_of("only_babble")
    for number in range(200):
        draw = channel.draw(48000, sampling_rate=16000, id="utt4", epoch=number)
        talkers = [talker["id"] for talker in draw.steps[1]["talkers"]]
        assert "utt4" not in talkers
        assert 3 <= len(talkers) <= 8 and len(set(talkers)) == len(talkers)


@pytest.mark.parametrize("step", ["babble", "noise", "hum"])
@pytest.mark.parametrize("rate", [8000, 16000])
def test_the_ratio_over_active_speech_is_the_drawn_one(step, rate):
    channel = TelephoneChannel([{step: {"snr_db": [5.0, 30.0]}}]).with_noise(ROWS, noise=ROWS)
    wave = speech(20, 4.0, rate)
    active = active_frames(frame_powers(wave, rate))
    for epoch in range(10):
        draw = channel.draw(len(wave), sampling_rate=rate, id="utt20", epoch=epoch)
        added = channel.apply(wave, draw) - wave
        speech_power, noise_power = (frame_powers(x, rate)[active].mean() for x in (wave, added))
        assert 10 * np.log10(speech_power / noise_power) == pytest.approx(draw.steps[0]["snr_db"], abs=0.5)


def test_active_speech_leaves_pauses_out():
    seconds = np.arange(16000) / 16000
    tone = (0.25 * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32)
    with_pause = np.concatenate([tone, 1e-3 * tone, np.zeros(16000, np.float32), tone])
    assert active_level_dbov(with_pause, 16000) == pytest.approx(10 * np.log10(0.25**2 / 2), abs=0.1)
    assert active_level_dbov(np.zeros(1000, np.float32), 16000) == -np.inf


def test_the_level_of_the_call_is_the_drawn_one():
    channel = TelephoneChannel([{"level": {"active_dbov": [-40, -20]}}])
    for epoch in range(5):
        call, draw = channel(speech(1), sampling_rate=16000, id="utt1", epoch=epoch)
        assert active_level_dbov(call, 16000) == pytest.approx(draw.steps[0]["active_dbov"], abs=0.2)


@pytest.mark.parametrize("preset", PRESETS)
def test_silence_stays_silent(preset):
    call, _ = channel_of(preset)(np.zeros(16000, np.float32), sampling_rate=16000, id="utt1")
    assert np.abs(call).max() < 1e-3  # A-law has no code for 0


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_the_band_is_a_telephones(rate):
    """By tones through the step itself: within 3 dB inside 350-3300 Hz, 30 dB down below 100 and above 3900 Hz."""
    step = BandPass()
    seconds = np.arange(rate) / rate
    for hz in (20, 50, 99, 350, 500, 1000, 2000, 3000, 3300, 3901, 3950, 5000, 7900):
        if hz < rate / 2:
            tone = np.sin(2 * np.pi * hz * seconds).astype(np.float32)
            gain_db = 20 * np.log10(np.abs(step.apply(tone, rate, {}, None)[rate // 2 :]).max() / np.abs(tone).max())
            assert (abs(gain_db) < 3) if 350 <= hz <= 3300 else gain_db < -30, (hz, gain_db)


def test_a_call_holds_nothing_above_4_khz():
    spectrum = np.abs(np.fft.rfft(channel_of("clean_8k")(speech(1), sampling_rate=16000, id="utt1")[0])) ** 2
    assert spectrum[len(spectrum) * 41 // 80 :].sum() < 1e-4 * spectrum.sum()


def test_reverberation_keeps_the_direct_sound_in_place():
    click = np.zeros(4000, np.float32)
    click[1000] = 0.5
    wet, _ = TelephoneChannel(["reverb"]).with_noise(impulse_responses=[RESPONSE])(click, sampling_rate=16000)
    assert np.argmax(np.abs(wet)) == 1000 and wet[1000] == pytest.approx(0.5, abs=1e-4)
    assert wet[1003] == pytest.approx(0.5 * 0.5**3, abs=1e-4)


def test_a_step_with_a_probability_is_left_out_in_its_share_of_recordings():
    channel = TelephoneChannel([{"level": {"prob": 0.3}}])
    drawn = [channel.draw(100, sampling_rate=16000, id=f"{n}").steps[0] for n in range(1000)]
    assert np.mean(["skipped" not in step for step in drawn]) == pytest.approx(0.3, abs=0.05)


def test_missing_babble_raises_or_is_recorded():
    with pytest.raises(ValueError, match="with_noise.*missing_noise: skip"):
        TelephoneChannel.from_preset("seed_order")(speech(1), sampling_rate=16000)
    channel = TelephoneChannel.from_preset("seed_order", missing_noise="skip")
    _, draw = channel(speech(1), sampling_rate=16000)
    assert [step for step in draw.steps if step["step"] == "babble"][0]["skipped"] == "nothing to mix in"


def test_babble_of_nobody_else_is_refused():
    channel = TelephoneChannel.from_preset("only_babble").with_noise([row(1)])
    with pytest.raises(ValueError, match="no utterance but 'utt1' itself"):
        channel(speech(1), sampling_rate=16000, id="utt1")


def test_the_pool_does_not_depend_on_the_order_of_the_rows():
    forth = TelephoneChannel.from_preset("only_babble").with_noise(ROWS, pool_s=12.0)
    back = TelephoneChannel.from_preset("only_babble").with_noise(ROWS[::-1], pool_s=12.0)
    assert len(forth.pools["talkers"].rows) == 4
    arguments = {"sampling_rate": 16000, "id": "another"}
    np.testing.assert_array_equal(forth(speech(50), **arguments)[0], back(speech(50), **arguments)[0])


def test_recordings_that_cannot_be_mixed_in_are_named(caplog):
    broken = {"id": "gone", "audio": {"path": "gone.wav", "bytes": None}}
    silent = {"id": "mute", "audio": {"array": np.zeros(16000, np.float32), "sampling_rate": 16000}}
    channel = TelephoneChannel.from_preset("only_babble").with_noise([*ROWS[:3], broken, silent])
    channel(speech(40), sampling_rate=16000, id="utt40")
    assert channel.pools["talkers"].bad == {"gone": "missing file", "mute": "silence"}
    assert "gone (missing file)" in caplog.text
    with pytest.raises(ValueError, match="none of 2 recordings can be mixed in") as error:
        TelephoneChannel.from_preset("only_babble").with_noise([broken, silent])(speech(1), sampling_rate=16000)
    assert not isinstance(error.value, AudioError)  # which would only reject the one recording


def test_a_channel_sent_to_another_process_gives_the_same_bits():
    channel = channel_of("physical")
    call, _ = channel(speech(1), sampling_rate=16000, id="utt1")
    sent = pickle.loads(pickle.dumps(channel))
    np.testing.assert_array_equal(sent(speech(1), sampling_rate=16000, id="utt1")[0], call)


@pytest.fixture
def wav_rows(tmp_path) -> datasets.Dataset:
    rows = []
    for number in range(5):
        soundfile.write(tmp_path / f"{number}.wav", speech(number), 16000)
        audio = {"bytes": None, "path": str(tmp_path / f"{number}.wav")}
        rows.append({"id": f"utt{number}", "audio": audio, "offset": 0.5, "duration": 2.0})
    return datasets.Dataset.from_list(rows)


def test_map_for_any_number_of_processes_and_on_the_fly_are_the_same_bits(wav_rows):
    channel = TelephoneChannel.from_preset("seed_order").with_noise(wav_rows)
    function = channel.map_function(seed=3)
    mapped = [wav_rows.map(function, num_proc=num_proc, load_from_cache_file=False) for num_proc in (None, 2)]
    fly = PretrainingDataset(wav_rows, channel=channel, seed=3)
    for number in range(5):
        one, two = (soundfile.read(io.BytesIO(m[number]["audio"]["bytes"]), dtype="float32")[0] for m in mapped)
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, fly.example([wav_rows[number]], epoch=0).wave)
        assert mapped[0][number]["channel"] == mapped[1][number]["channel"]
        assert (mapped[0][number]["offset"], mapped[0][number]["duration"]) == (0.0, 2.0)
    later = fly.example([wav_rows[0]], epoch=1).wave
    assert not np.array_equal(later, fly.example([wav_rows[0]], epoch=0).wave)


def test_a_share_of_the_recordings_stays_wideband(wav_rows):
    channel = TelephoneChannel.from_preset("only_codec")
    half = PretrainingDataset(wav_rows, channel=channel, wideband_share=0.5)
    plain = PretrainingDataset(wav_rows)
    same = [np.array_equal(half.example([wav_rows[0]], epoch=e).wave, plain.example([wav_rows[0]], epoch=e).wave)
            for e in range(60)]  # fmt: skip
    assert 15 <= sum(same) <= 45


def test_a_map_without_its_column_says_which_there_are(wav_rows):
    with pytest.raises(ValueError, match="column `name`.*id, audio"):
        wav_rows.map(TelephoneChannel.from_preset("real_8k").map_function(id="name"))


@pytest.mark.parametrize(("wave", "message"), [
    (np.zeros((2, 100), np.float32), "one channel"),
    (np.zeros(100), "float64"),
    (np.zeros(0, np.float32), "no samples"),
    (np.array([0, np.nan], np.float32), "NaN"),
    ([0.0, 0.1], "list"),
])  # fmt: skip
def test_what_is_no_recording_is_refused(wave, message):
    with pytest.raises(ValueError, match=message):
        channel_of("seed_order")(wave, sampling_rate=16000)


def test_a_recording_of_one_sample_goes_through():
    for preset in PRESETS:
        assert channel_of(preset)(np.array([0.5], np.float32), sampling_rate=16000)[0].shape == (1,)


def test_the_yaml_of_the_repository_is_the_default_preset():
    from_yaml = TelephoneChannel.from_yaml(ROOT / "configs" / "telephone.yaml")
    assert from_yaml.steps == TelephoneChannel.from_preset("seed_order").steps


@pytest.mark.parametrize(("text", "message"), [
    ("steps: [{babel: {}}]", "unknown key `babel`; did you mean `babble`"),
    ("steps: [{babble: {snr: 3}}]", "step `babble`: unknown key `snr`; did you mean `snr_db`"),
    ("steps: [{babble: {snr_db: loud}}]", "`snr_db` is 'loud'"),
    ("steps: [{babble: {snr_db: [25, 10]}}]", "in order"),
    ("steps: [{packet_loss: {concealment: zeros}}]", "silence, repeat, pitch"),
    ("steps: [{packet_loss: {loss_in_burst: 0.5}}]", "no effect without `mean_burst`"),
    ("steps: [{codec: {names: [g729]}}]", "choose from g711_mu"),
    ("steps: [{resample: {rate: 8000}}]", "must end at the rate"),
    ("steps: [{resample: {prob: 0.5}}]", "no effect on `resample`"),
    ("steps: [{band_pass: {low_hz: 90}}]", "rising order"),
    ("steps: babble", "where a list is due"),
    ("steps: [[babble]]", "one `name: {parameters}`"),
    ("presets: physical", "unknown key `presets`; did you mean `preset`"),
    ("preset: phisical", "did you mean `physical`"),
    ("preset: physical\nsteps: []", "either `steps`.* or `preset`"),
    ("missing_noise: none\npreset: physical", '"error" or "skip"'),
    ("steps: [", "not valid YAML"),
    ("- babble", "must hold"),
])  # fmt: skip
def test_a_yaml_with_a_slip_says_where(tmp_path, text, message):
    path = tmp_path / "channel.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        TelephoneChannel.from_yaml(path)


def test_a_missing_yaml_and_misplaced_steps_say_so(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        TelephoneChannel.from_yaml(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="put `resample: {rate: 8000}` before it"):
        TelephoneChannel(["codec"])(speech(1), sampling_rate=16000)
    with pytest.raises(ValueError, match="stands at 6000 Hz"):
        TelephoneChannel(["band_pass"])(speech(1), sampling_rate=6000)


def test_every_step_has_a_place_in_a_preset():
    used = {name for steps in PRESETS.values() for step in steps for name in step}
    assert used == set(STEPS)
