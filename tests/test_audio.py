"""Decoding: a known tone comes back from every format, and what cannot be used says so in one line."""

import builtins
import io
import math
import pickle
import time

import numpy as np
import pytest
import soundfile

from nest_hf.data import AudioError, audio_duration, decode_audio

TONE_HZ, SECONDS = 440.0, 1.0
FORMATS = [
    ("WAV", "PCM_U8"),
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "PCM_32"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("WAV", "ULAW"),
    ("WAV", "ALAW"),
    ("FLAC", "PCM_16"),
    ("MP3", "MPEG_LAYER_III"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("AIFF", "PCM_16"),
]
# Relative error of a tone's level, where quantisation or a lossy codec makes it larger than 0.1 %.
LEVEL_ERROR = {"PCM_U8": 0.02, "ULAW": 0.02, "ALAW": 0.02, "MPEG_LAYER_III": 0.05, "VORBIS": 0.06, "OPUS": 0.06}


def tone(rate: int, *, channels: int = 1, seconds: float = SECONDS) -> np.ndarray:
    wave = 0.4 * np.sin(2 * np.pi * TONE_HZ * np.arange(int(seconds * rate)) / rate)
    return wave if channels == 1 else np.stack([wave, np.zeros_like(wave)], axis=1)


def encoded(container: str, encoding: str, rate: int, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(rate, channels=channels), rate, format=container, subtype=encoding)
    return buffer.getvalue()


def strongest_hz(samples: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 8 * len(samples)))
    return spectrum.argmax() * rate / (8 * len(samples))


def level_of(samples: np.ndarray, rate: int, hz: float) -> float:
    """Amplitude of the part of a signal that has this frequency."""
    t = np.arange(len(samples)) / rate
    waves = np.stack([np.sin(2 * np.pi * hz * t), np.cos(2 * np.pi * hz * t)], axis=1)
    return float(np.hypot(*np.linalg.lstsq(waves, samples, rcond=None)[0]))


def error_of(call, *args, **kwargs) -> AudioError:
    with pytest.raises(AudioError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize(("container", "encoding"), FORMATS)
def test_every_format_gives_the_tone_back(tmp_path, container, encoding, rate, channels):
    if encoding == "OPUS" and rate in (22050, 44100):
        pytest.skip("Opus has no such rate")
    data = encoded(container, encoding, rate, channels)
    path = tmp_path / "tone"
    path.write_bytes(data)
    decoded = decode_audio(path)
    assert decoded.samples.dtype == np.float32 and decoded.samples.ndim == 1
    assert (decoded.sampling_rate, decoded.original_sampling_rate, decoded.num_channels) == (16000, rate, channels)
    assert abs(len(decoded.samples) / 16000 - SECONDS) < 0.005
    middle = decoded.samples[2000:14000]
    assert abs(strongest_hz(middle, 16000) - TONE_HZ) < 1.0
    # The second channel is silent, so the average has half the level.
    assert level_of(middle, 16000, TONE_HZ) == pytest.approx(0.4 / channels, rel=LEVEL_ERROR.get(encoding, 1e-3))
    assert abs(audio_duration(path) - SECONDS) < 0.005
    for same in (data, {"bytes": data, "path": "elsewhere.wav"}, {"bytes": None, "path": str(path)}):
        assert np.array_equal(decode_audio(same).samples, decoded.samples)


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize(("container", "encoding"), FORMATS)
def test_channels_weigh_the_same_and_do_not_mix_up(container, encoding, rate):
    if encoding == "OPUS" and rate == 44100:
        pytest.skip("Opus has no such rate")
    t = np.arange(rate) / rate
    left, right = 0.4 * np.sin(2 * np.pi * 500 * t), 0.2 * np.sin(2 * np.pi * 1250 * t)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([left, right], axis=1), rate, format=container, subtype=encoding)
    middle = decode_audio(buffer.getvalue()).samples[2000:14000]
    error = LEVEL_ERROR.get(encoding, 1e-3)
    assert level_of(middle, 16000, 500) == pytest.approx(0.2, rel=error)
    assert level_of(middle, 16000, 1250) == pytest.approx(0.1, rel=2 * error)


def test_clipped_samples_are_counted_and_full_scale_alone_is_no_clipping(tmp_path):
    wave = 2.0 * np.sin(2 * np.pi * TONE_HZ * np.arange(16000) / 16000)
    for encoding in ("PCM_16", "PCM_24", "FLOAT", "ULAW", "ALAW", "PCM_U8"):
        for gain, share in ((1.0, 2 / 3), (0.5, 0.0), (0.4, 0.0)):  # beyond half of its peak a sine is 2/3 of the time
            path = tmp_path / "tone.wav"
            soundfile.write(path, np.clip(gain * wave, -1, 1), 16000, subtype=encoding)
            if share or encoding not in ("ULAW", "ALAW", "PCM_U8"):  # whose steps at the peak are wide: runs are true
                assert decode_audio(path).num_clipped / 16000 == pytest.approx(share, abs=0.05)
    stereo = np.stack([np.clip(wave, -1, 1), 0 * wave], axis=1)
    soundfile.write(path, stereo, 16000)
    assert decode_audio(path).num_clipped / 16000 == pytest.approx(2 / 3, abs=0.05)  # before the average
    soundfile.write(path, 0.7 * wave, 16000, subtype="FLOAT")  # 1.4: beyond full scale, but whole
    assert decode_audio(path).num_clipped == 0 and decode_audio(path).samples.max() > 1.3


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_one_sample_is_a_sample_or_says_that_none_is_left(tmp_path, rate):
    soundfile.write(tmp_path / "one.wav", [0.5], rate)
    if rate <= 22050:
        assert len(decode_audio(tmp_path / "one.wav").samples) == round(16000 / rate)
    else:
        error = error_of(decode_audio, tmp_path / "one.wav")
        assert error.reason == "zero length" and "no sample left at 16000 Hz" in str(error)
    assert audio_duration(tmp_path / "one.wav") == 1 / rate


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [("ipod", "aac", 16000), ("webm", "libopus", 48000), ("amr", "libopencore_amrnb", 8000)],
)
def test_pyav_reads_what_libsndfile_cannot(container, codec, rate):
    av = pytest.importorskip("av")
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray((tone(rate) * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = rate
        to_codec = av.AudioResampler(
            format=stream.codec_context.format, layout="mono", rate=rate, frame_size=stream.codec_context.frame_size
        )
        for piece in to_codec.resample(frame) + to_codec.resample(None):
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    decoded = decode_audio(buffer.getvalue())
    assert decoded.original_sampling_rate == rate and decoded.num_channels == 1
    assert abs(len(decoded.samples) / 16000 - SECONDS) < 0.15  # these codecs pad to whole frames
    assert abs(strongest_hz(decoded.samples[2000:14000], 16000) - TONE_HZ) < 1.0
    assert abs(audio_duration(buffer.getvalue()) - SECONDS) < 0.15
    piece = decode_audio(buffer.getvalue(), offset_s=0.25, duration_s=0.5)
    assert len(piece.samples) == 8000
    if rate == 16000:
        assert np.allclose(piece.samples, decoded.samples[4000:12000], atol=1e-4)
    if container != "amr":
        assert error_of(decode_audio, buffer.getvalue()[: len(buffer.getvalue()) // 2]).reason == "unreadable"


def test_without_pyav_the_error_names_the_extra(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def no_av(name, *args, **kwargs):
        if name == "av":
            raise ImportError("No module named 'av'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_av)
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(200))
    error = error_of(decode_audio, tmp_path / "a.m4a")
    assert error.reason == "unreadable" and "nest_hf[av]" in str(error) and "a.m4a" in str(error)


@pytest.mark.parametrize(("container", "encoding"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("AIFF", "PCM_16")])
def test_a_piece_is_the_same_as_the_slice_of_the_whole(container, encoding):
    data = encoded(container, encoding, 22050)
    whole, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    piece = decode_audio(data, sampling_rate=22050, offset_s=0.3333, duration_s=0.25)
    start, count = int(0.3333 * 22050), int(0.25 * 22050)
    assert np.array_equal(piece.samples, whole[start : start + count])
    rest = decode_audio(data, sampling_rate=22050, offset_s=0.9, duration_s=10.0)
    assert np.array_equal(rest.samples, whole[int(0.9 * 22050) :])


def test_arrays_are_scaled_sliced_and_averaged():
    wave = tone(16000).astype(np.float32)
    assert np.array_equal(decode_audio({"array": wave, "sampling_rate": 16000}).samples, wave)
    integers = np.round(wave * 32768).astype(np.int16)
    assert np.array_equal(
        decode_audio({"array": integers, "sampling_rate": 16000}).samples, integers / np.float32(32768)
    )
    stereo = decode_audio({"array": np.stack([wave, 0 * wave]), "sampling_rate": 16000}, offset_s=0.5)
    assert stereo.num_channels == 2 and np.array_equal(stereo.samples, wave[8000:] / 2)


def test_another_rate_is_refused_unless_resampled():
    data = encoded("WAV", "PCM_16", 8000)
    error = error_of(decode_audio, data, resample=False)
    assert error.reason == "wrong sampling rate"
    assert "8000" in str(error) and "16000" in str(error) and "--resample true" in str(error)
    assert len(decode_audio(data, sampling_rate=8000, resample=False).samples) == 8000


@pytest.mark.parametrize(("container", "encoding"), FORMATS)
def test_a_truncated_file_is_unreadable(container, encoding):
    data = encoded(container, encoding, 16000)
    assert error_of(decode_audio, data[: len(data) * 2 // 3]).reason == "unreadable"


@pytest.mark.parametrize(("container", "encoding"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_a_corrupt_file_is_unreadable(container, encoding):
    data = bytearray(encoded(container, encoding, 16000))
    middle = slice(len(data) // 3, 2 * len(data) // 3)
    data[middle] = np.random.default_rng(0).bytes(len(data[middle]))
    assert error_of(decode_audio, bytes(data)).reason == "unreadable"


def test_what_cannot_be_used_has_a_reason(tmp_path):
    def written(name: str, samples, subtype: str = "PCM_16") -> str:
        soundfile.write(tmp_path / name, np.asarray(samples, np.float32), 16000, subtype=subtype)
        return str(tmp_path / name)

    (tmp_path / "no_bytes.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_bytes(b"this is no audio at all " * 20)
    for path, reason in [
        (str(tmp_path / "absent.wav"), "missing file"),
        (str(tmp_path), "unreadable"),
        (str(tmp_path / "text.wav"), "unreadable"),
        (str(tmp_path / "no_bytes.wav"), "zero length"),
        (written("no_samples.wav", []), "zero length"),
        (written("nan.wav", [0.0, math.nan, 0.1], "FLOAT"), "NaN samples"),
        (written("inf.wav", [0.0, math.inf, 0.1], "FLOAT"), "NaN samples"),
    ]:
        error = error_of(decode_audio, path)
        assert error.reason == reason and path in str(error)
    for path in ("absent.wav", "no_bytes.wav", "no_samples.wav", "text.wav"):
        error_of(audio_duration, tmp_path / path)
    good = written("good.wav", tone(16000))
    assert error_of(decode_audio, good, offset_s=1.0).reason == "offset past the end"
    assert error_of(decode_audio, good, duration_s=0.0).reason == "zero length"
    assert error_of(decode_audio, {"path": None, "bytes": None}).reason == "missing file"
    with pytest.raises(ValueError, match="offset_s"):
        decode_audio(good, offset_s=-1.0)
    assert len(decode_audio(written("one.wav", [0.5])).samples) == 1


def test_a_streamed_header_is_not_taken_for_a_truncated_file():
    data = bytearray(encoded("WAV", "PCM_16", 16000))
    size = data.index(b"data") + 4
    data[size : size + 4] = b"\xff\xff\xff\xff"
    assert len(decode_audio(bytes(data)).samples) == 16000


def test_the_error_survives_a_worker_process():
    error = pickle.loads(pickle.dumps(error_of(decode_audio, "absent.wav")))
    assert isinstance(error, AudioError) and error.reason == "missing file"


def test_ten_seconds_of_wav_take_about_a_millisecond(tmp_path):
    soundfile.write(tmp_path / "ten.wav", tone(16000, seconds=10.0), 16000)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        decode_audio(tmp_path / "ten.wav")
        times.append(time.perf_counter() - start)
    assert min(times) < 0.003
