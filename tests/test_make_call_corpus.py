"""The corpus of calls: what the tests hold is new to training, and the files are what they say."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nest_hf.data.call_corpus import SETS, draw_speakers, plan_corpus, split_of
from nest_hf.data.call_grammar import DOMAINS, SEEN, UNSEEN, dictionary_words, literal_pieces, templates

SCRIPT = Path(__file__).parents[1] / "training" / "make_call_corpus.py"
SMALL = ("--hours", "0.02", "--call_hours", "0.01", "--test_utterances", "50", "--lm_lines", "300")


def run(folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), "--output_dir", str(folder), *SMALL, *options]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


def read(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("calls") / "corpus"
    result = run(folder)
    assert result.returncode == 0, result.stderr
    assert str(folder / "corpus.json") in result.stdout
    return folder


@pytest.fixture(scope="module")
def full_plan():
    return plan_corpus(hours=2.0, call_hours=0.5, test_utterances=300, lm_lines=40_000, seed=0)


def test_splits_share_no_voice():
    speakers = draw_speakers(3)
    voices = {split: {speaker.variant for speaker in of_split} for split, of_split in speakers.items()}
    assert len(voices["train"]) >= 10
    assert sum(map(len, voices.values())) == len(set.union(*voices.values()))


def test_every_recording_has_a_voice_of_its_split(made):
    speakers = draw_speakers(0)
    for name in SETS:
        assert {row["speaker"] for row in read(made, name)} <= {speaker.id for speaker in speakers[split_of(name)]}


def test_training_texts_know_nothing_of_the_tests(full_plan):
    plan, lm_texts = full_plan
    training = [u.sentence.text for name in ("train", "calls_train") for u in plan[name]] + lm_texts
    joined = "\n".join(training)
    assert [keyword for keyword in UNSEEN if keyword in joined] == []
    for template in (t for domain in DOMAINS for t in templates(domain, seen=False)):
        assert max(literal_pieces(template), key=len) not in joined
    others = [u.sentence.text for name in SETS if split_of(name) != "train" for u in plan[name]]
    assert set(training).isdisjoint(others)


def test_every_seen_keyword_is_trained_and_every_unseen_one_is_tested(full_plan):
    plan, _ = full_plan
    text = {name: "\n".join(u.sentence.text for u in plan[name]) for name in SETS}
    assert min(text["train"].count(keyword) for keyword in SEEN) >= 5
    for name in ("test", "calls_test"):
        assert [keyword for keyword in UNSEEN if keyword not in text[name]] == []
        assert len(plan[name]) == 300
        assert sum(u.sentence.template == "unseen" for u in plan[name]) == 90
    assert {c for name in SETS for c in text[name]} <= set(text["train"])


@pytest.mark.parametrize("template", ["您名下的{keyword}需要确认一下", "关于{keyword}您还有什么疑问吗"], ids="12")
def test_in_a_keywords_place_training_has_words_without_number(full_plan, template):
    plan, lm_texts = full_plan
    texts = {"lm": lm_texts, "train": [u.sentence.text for u in plan["train"]]}
    before, after = template.split("{keyword}")
    for name, fewest in (("lm", 30), ("train", 3)):
        words = {t.partition(before)[2].removesuffix(after) for t in texts[name] if before in t and t.endswith(after)}
        assert len(words.difference(SEEN)) >= fewest


def test_a_language_model_reads_the_words_of_the_dictionary_often(full_plan):
    _, lm_texts = full_plan
    text = "\n".join(lm_texts)
    assert np.median([text.count(word) for word in dictionary_words()[::10]]) >= 10


def test_the_hours_are_near_those_asked_for(full_plan):
    plan, _ = full_plan
    assert sum(u.expected_s for u in plan["train"]) / 3600 == pytest.approx(2.0, rel=0.01)


def test_espeak_takes_as_long_as_was_planned(made):
    planned, _ = plan_corpus(hours=0.02, call_hours=0.01, test_utterances=50, lm_lines=300, seed=0)
    for name in SETS:
        said = sum(row["duration"] for row in read(made, name))
        assert said == pytest.approx(sum(u.expected_s for u in planned[name]), rel=0.15)


def test_manifests_tell_the_truth_about_the_audio(made):
    ids = []
    for name in SETS:
        rate = 8000 if name.startswith("calls") else 16000
        for row in read(made, name):
            ids.append(row["id"])
            info = soundfile.info(made / row["audio_filepath"])
            assert (info.samplerate, info.channels, info.subtype) == (rate, 1, "PCM_16")
            assert info.frames / rate == row["duration"]
            assert 0.02 < np.abs(soundfile.read(made / row["audio_filepath"])[0]).max() <= 1
    assert len(ids) == len(set(ids)) == len(list((made / "audio").rglob("*.flac")))


def test_calls_keep_their_draw_and_babble_with_voices_of_their_split_alone(made):
    for name in SETS:
        for row in read(made, name):
            if not name.startswith("calls"):
                assert "channel" not in row
                continue
            draw = json.loads(row["channel"])
            assert draw["id"] == row["id"]
            babble = next(step for step in draw["steps"] if step["step"] == "babble")
            talkers = {part for part in json.dumps(babble).split('"') if "-0" in part}
            assert talkers and all(talker.startswith(f"{split_of(name)}-") for talker in talkers)


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_bytes_and_another_seed_does_not(made, tmp_path):
    assert run(tmp_path / "same", "--num_proc", "1").returncode == 0
    assert contents(tmp_path / "same") == contents(made)
    assert run(tmp_path / "other", "--seed", "1").returncode == 0
    assert (tmp_path / "other" / "train.jsonl").read_bytes() != (made / "train.jsonl").read_bytes()


@pytest.mark.slow
def test_the_same_command_finds_its_work_and_another_is_refused(made, tmp_path):
    before = contents(made)
    assert "nothing to do" in run(made).stdout
    refused = run(made, "--seed", "1")
    assert refused.returncode != 0 and "--overwrite" in refused.stderr and "Traceback" not in refused.stderr
    assert contents(made) == before
    (tmp_path / "letter.txt").write_text("mine")
    assert run(tmp_path, "--overwrite", "true").returncode != 0
    assert contents(tmp_path) == {"letter.txt": b"mine"}


@pytest.mark.slow
def test_what_an_interrupt_left_is_finished(made, tmp_path):
    assert run(tmp_path / "cut").returncode == 0
    for name in ("corpus.json", "test.jsonl", "audio/train/train-00003.flac"):
        (tmp_path / "cut" / name).unlink()
    assert run(tmp_path / "cut").returncode == 0
    assert contents(tmp_path / "cut") == contents(made)


def test_espeak_says_every_character(full_plan):
    espeak = pytest.importorskip("nest_hf.data.espeak")
    pytest.importorskip("espeakng_loader")
    plan, lm_texts = full_plan
    characters = set("".join([*lm_texts, *(u.sentence.text for name in SETS for u in plan[name])]))
    synthesizer = espeak.Synthesizer(0)
    assert synthesizer.unspeakable(characters) == []
    assert synthesizer.unspeakable("好a？𠮷") == sorted("a？𠮷")
