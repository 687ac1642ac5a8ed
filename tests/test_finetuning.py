"""FinetuneTrainer and its data: global counts, targets that cannot be, decoding, the probe, overfitting."""

import json
import random

import numpy as np
import pytest
import torch
from spoken_tones import CHARACTERS, make_utterances, utterance
from tiny_asr import chatml_tokenizer, text_config
from transformers import Qwen3ForCausalLM, Wav2Vec2Processor, set_seed

from nest_hf import NestConfig, NestFeatureExtractor
from nest_hf.ctc_tokenizer import build_ctc_tokenizer
from nest_hf.data import ExampleKey, TokenBudgetBatchSampler
from nest_hf.data.labelled import (
    LabelledCollator,
    LabelledDataset,
    impossible_targets,
    join_texts,
    labelled_lengths,
    load_labelled,
)
from nest_hf.finetuning import FinetuneTrainer, text_metrics
from nest_hf.finetuning_arguments import FinetuneDataArguments, FinetuneTrainingArguments
from nest_hf.finetuning_run import plan as plan_batches
from nest_hf.guards import blank_statistics, guard_text
from nest_hf.memory_probe import probe_longest
from nest_hf.modeling_nest import NestForCTC, NestModel
from nest_hf.modeling_nest_asr import NestAsrForConditionalGeneration
from nest_hf.processing_nest_asr import NestAsrProcessor

STILL = {"dropout": 0.0, "hidden_dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0}
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "subsampling_conv_channels": 8}


class Plan(list):
    """Batches of rows, the same in every epoch."""

    def set_epoch(self, epoch):
        pass


def plan_of(*batches) -> Plan:
    return Plan([[ExampleKey(0, (row,)) for row in batch] for batch in batches])


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    return load_labelled(make_utterances(folder / "train", 8, length=None), name="train")


def recogniser(task: str, sizes=SIZES, **text):
    """A model without dropout whose BatchNorm learns, and its processor."""
    set_seed(0)
    config = NestConfig.from_preset("tiny", **sizes, **STILL)
    tokenizer = build_ctc_tokenizer([CHARACTERS])
    if task == "ctc":
        config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
        return NestForCTC(config), Wav2Vec2Processor(NestFeatureExtractor(), tokenizer)
    processor = NestAsrProcessor(NestFeatureExtractor(), chatml_tokenizer([CHARACTERS]), tokenizer)
    language_model = Qwen3ForCausalLM(text_config(len(processor.tokenizer), initializer_range=0.1, **text))
    adaptor = {"kind": "mlp", "projector_hidden_size": 64}
    parts = (NestModel(config), language_model, processor)
    return NestAsrForConditionalGeneration.from_parts(*parts, adaptor_config=adaptor), processor


def trainer_of(task, labelled, output_dir, plan, model=None, **arguments) -> FinetuneTrainer:
    model, processor = model or recogniser(task)
    defaults = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "max_steps": 1,
        "logging_steps": 1,
        "report_to": "none",
    }
    options = {"disable_tqdm": True, "eval_strategy": "no", "save_strategy": "no", "learning_rate": 1e-3}
    collator = LabelledCollator(processor, subsampling_factor=model.config.subsampling_factor)
    dataset = LabelledDataset(labelled)
    lengths = labelled_lengths(labelled, "seconds", processor, 8)
    sets = {"fit": (dataset, TokenBudgetBatchSampler(lengths, batch_size=4, shuffle=False), collator)}
    return FinetuneTrainer(
        model=model,
        args=FinetuneTrainingArguments(**{**defaults, **options, **arguments}),
        train_dataset=dataset,
        eval_dataset={"fit": dataset},
        train_sampler=plan,
        train_collator=collator,
        eval_sets=sets,
        processing_class=processor,
    )


# ---- data


def test_texts_are_written_for_each_head_and_rows_without_any_are_counted(tmp_path):
    manifest = make_utterances(tmp_path / "a", 4, texts=["天地", "人山", "水火", "木金"])
    lines = [json.loads(line) for line in open(manifest, encoding="utf-8")]
    for line, text in zip(lines, ["OK, 天地！", "。。。", "", "木 <ANNOTATION_ERROR>"], strict=True):
        line["text"] = text
    with open(manifest, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    labelled = load_labelled(manifest, name="train")
    assert labelled.texts == ["OK, 天地！"] and labelled.ctc_texts == ["ok天地"]
    dropped = {reason: count for report in labelled.reports for reason, count in report.dropped.items()}
    assert sorted(dropped.values()) == [1, 1, 1] and dropped["nothing but punctuation"] == 1


def test_a_ctc_target_needs_a_frame_per_token_and_one_between_equal_ones():
    labels = torch.tensor([[3, 4, 5], [3, 3, 5], [3, 4, -100]])
    mask = torch.ones(3, 24)  # 3 encoder frames
    assert impossible_targets(labels, mask, 8) == [1]
    mask[2, 8:] = 0  # 1 encoder frame for 2 tokens
    assert impossible_targets(labels, mask, 8) == [1, 2]


def test_impossible_targets_are_reported_with_their_ids(tmp_path):
    manifest = make_utterances(tmp_path / "a", 2, texts=["天地", "人山"])
    lines = [json.loads(line) for line in open(manifest, encoding="utf-8")]
    lines[1]["text"] = "天" * 60
    with open(manifest, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    trainer = trainer_of("ctc", load_labelled(manifest, name="train"), tmp_path, plan_of([0, 1]))
    trainer.train()
    assert [key for key in trainer.audio_report if key[0] == "impossible"] == [("impossible", "a-001")]
    assert trainer.state.log_history[0]["ctc_impossible"] == 1


def test_a_share_of_the_recordings_becomes_noise_without_text_anew_in_each_epoch(labelled):
    plain, noisy = LabelledDataset(labelled), LabelledDataset(labelled, no_speech_share=0.25)
    replaced = []
    for epoch in range(20):
        for row in range(len(labelled.rows)):
            key = ExampleKey(epoch, (row,))
            heard, example = plain[key], noisy[key]
            assert len(example.audio.wave) == len(heard.audio.wave) and example.audio.id == heard.audio.id
            if np.array_equal(example.audio.wave, heard.audio.wave):
                assert (example.text, example.ctc_text) == (heard.text, heard.ctc_text)
                continue
            replaced.append((epoch, row))
            assert (example.text, example.ctc_text) == ("", "") and 0 < np.abs(example.audio.wave).max() < 1
            assert np.array_equal(example.audio.wave, noisy[key].audio.wave)
    assert 0.15 < len(replaced) / (20 * len(labelled.rows)) < 0.35
    assert len({epoch for epoch, _ in replaced}) > 10 and len({row for _, row in replaced}) == len(labelled.rows)


def test_a_batch_of_noise_alone_is_learned_from(labelled, tmp_path):
    trainer = trainer_of("asr", labelled, tmp_path, plan_of([0, 1]))
    trainer.train_dataset = LabelledDataset(labelled, no_speech_share=0.999999)
    trainer.train()
    losses = trainer.state.log_history[0]
    assert losses["lm_loss"] > 0 and losses["ctc_loss"] > 0 and np.isfinite(losses["loss"])


def test_a_share_of_the_answer_is_misread_and_nothing_else(labelled):
    _, processor = recogniser("asr")
    dataset, options = LabelledDataset(labelled), {"subsampling_factor": 8}
    plain, noisy = LabelledCollator(processor, **options), LabelledCollator(processor, answer_noise=0.3, **options)
    changed, answers = 0, 0
    for epoch in range(30):
        examples = [dataset[ExampleKey(epoch, (row,))] for row in range(len(dataset))]
        expected, batch = plain(examples), noisy(examples)
        assert torch.equal(batch["labels"], expected["labels"])
        misread = batch["input_ids"] != expected["input_ids"]
        assert not misread[batch["labels"] == -100].any()  # prompts, audio and padding
        assert not set(batch["input_ids"][misread].tolist()) & set(processor.tokenizer.all_special_ids)
        assert torch.equal(batch["input_ids"], noisy(examples)["input_ids"])
        changed, answers = changed + int(misread.sum()), answers + int((batch["labels"] != -100).sum())
    assert 0.25 < changed / answers < 0.33


def test_joined_recordings_are_one_example_with_both_texts(labelled):
    dataset = LabelledDataset(labelled)
    alone = [dataset[ExampleKey(3, (row,))] for row in (2, 5)]
    joined = dataset[ExampleKey(3, (2, 5))]
    assert np.array_equal(joined.audio.wave, np.concatenate([example.audio.wave for example in alone]))
    assert joined.text == alone[0].text + alone[1].text and joined.ctc_text == alone[0].ctc_text + alone[1].ctc_text
    noise = LabelledDataset(labelled, no_speech_share=0.999999)[ExampleKey(3, (2, 5))]
    assert noise.text == "" and len(noise.audio.wave) == len(joined.audio.wave)


@pytest.mark.parametrize(
    "texts, joined",
    [(["你好", "再见"], "你好再见"), (["how are", "you"], "how are you"), (["你好。", "OK"], "你好。OK"),
     (["OK", "", "好", "A"], "OK好A"), (["天"], "天")],
)  # fmt: skip
def test_only_words_of_scripts_with_spaces_get_one_between_them(texts, joined):
    assert join_texts(texts) == joined


def test_a_plan_joins_short_recordings_within_its_budget(labelled, tmp_path):
    rows = labelled.rows["duration"][:]
    arguments = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
    options = {"batch_budget": 30.0, "join_to_s": 4.0}
    sampler = plan_batches(
        labelled, np.array(rows), FinetuneDataArguments(**options), FinetuneTrainingArguments(**arguments), 4,
        train=True, seed=0,
    )  # fmt: skip
    batches = sampler.plan(0)
    assert any(len(key.rows) > 1 for batch in batches for key in batch)
    assert sorted(row for batch in batches for key in batch for row in key.rows) == list(range(len(rows)))
    assert all(len(batch) * max(sum(rows[row] for row in key.rows) for key in batch) <= 30 for batch in batches)
    with pytest.raises(ValueError, match="`join_to_s` is 20.0; joined recordings may be 2.5 times as long"):
        FinetuneDataArguments(join_to_s=20.0)


def test_lengths_are_those_of_the_batch(labelled):
    for task, unit, key in (("asr", "llm_tokens", "attention_mask"), ("ctc", "mel_frames", "input_features_mask")):
        model, processor = recogniser(task)
        dataset, collator = LabelledDataset(labelled), LabelledCollator(processor, subsampling_factor=8)
        batch = collator([dataset[ExampleKey(0, (row,))] for row in range(len(dataset))])
        assert batch[key].sum(1).tolist() == labelled_lengths(labelled, unit, processor, 8).tolist()


# ---- the losses


@pytest.mark.parametrize("task", ["ctc", "asr"])
def test_accumulated_batches_weigh_every_token_alike(labelled, tmp_path, task):
    """Two uneven batches accumulated give the update of one: no mean of means, for both losses."""
    ends = []
    for plan, steps in ((plan_of([0, 1, 2, 3, 4]), 1), (plan_of([0], [1, 2, 3, 4]), 2)):
        trainer = trainer_of(
            task, labelled, tmp_path, plan, gradient_accumulation_steps=steps, optim="sgd", max_grad_norm=0.0,
            lr_scheduler_type="constant",
        )  # fmt: skip
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):  # whose statistics are of a batch
                module.train = lambda mode=True, module=module: module
                module.training = False
        trainer.train()
        ends.append((trainer.state.log_history[0], trainer.model.state_dict()))
    (first, one), (second, two) = ends
    for name in ("loss", "ctc_loss", *(["lm_loss"] if task == "asr" else [])):
        assert second[name] == pytest.approx(first[name], rel=1e-5)
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-6, rtol=1e-4)


# ---- validation


def test_error_rates_are_of_the_whole_set():
    lines = [
        {"id": "a", "text": "one two", "ctc": "one too", "lm": "one two"},
        {"id": "b", "text": "six", "ctc": "six", "lm": "sax"},
    ]
    metrics = text_metrics(lines, level="basic")
    assert metrics == pytest.approx({"cer": 1 / 9, "wer": 1 / 3, "ctc_cer": 1 / 9, "ctc_wer": 1 / 3})
    assert "wer" not in text_metrics([{"id": "a", "text": "天地", "lm": "天人"}])


# ---- the probe


def states(trainer) -> list:
    model = trainer.model
    tensors = [t.clone() for t in (*model.parameters(), *model.buffers())]
    return [*tensors, torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1].copy())]


def test_the_probe_leaves_no_trace(labelled, tmp_path):
    plan = TokenBudgetBatchSampler(labelled.rows["duration"][:], batch_size=3)
    trainer = trainer_of("ctc", labelled, tmp_path, plan)
    trainer.model.eval()
    before, python = states(trainer), random.getstate()
    probe = probe_longest(trainer, unit="seconds")
    assert probe.num_examples == 3 and probe.size == pytest.approx(3 * max(labelled.rows["duration"][:]))
    assert probe.peak_gb > 0 and probe.step_s > 0
    assert all(torch.equal(a, b) for a, b in zip(before, states(trainer), strict=True))
    assert random.getstate() == python and not trainer.model.training and not trainer.audio_report
    assert all(p.grad is None for p in trainer.model.parameters())


def test_a_batch_that_does_not_fit_names_the_largest_budget_that_does(labelled, tmp_path, monkeypatch):
    """Memory that grows in a straight line with the padded size: 1 GB and 0.1 GB per second."""
    import nest_hf.memory_probe as probe

    plan = TokenBudgetBatchSampler(labelled.rows["duration"][:], budget=15.0)
    trainer = trainer_of("ctc", labelled, tmp_path, plan)
    monkeypatch.setattr(probe, "_run", lambda trainer, batch, size: probe.Probe(size, len(batch), 1 + 0.1 * size, 1.0))
    with pytest.raises(ValueError, match="largest `batch_budget` that fits is about 9.5"):
        probe_longest(trainer, unit="seconds", max_memory_gb=2.0)  # 10 s, less a twentieth


# ---- it learns, and it listens


@pytest.mark.slow
def test_sixteen_utterances_are_learned_by_heart_and_by_ear(tmp_path):
    """CER 0 by CTC and by the language model; the answer goes with the audio; silence gives none."""
    manifest = make_utterances(tmp_path / "fit", 16, length=5)
    labelled = load_labelled(manifest, name="fit")
    sizes = {**SIZES, "hidden_size": 64, "num_hidden_layers": 2, "subsampling_conv_channels": 32}
    model = recogniser("asr", sizes, hidden_size=64, intermediate_size=128, head_dim=16)
    plan = TokenBudgetBatchSampler(labelled.rows["duration"][:], batch_size=8)
    trainer = trainer_of(
        "asr", labelled, tmp_path, plan, model, max_steps=500, learning_rate=2e-3, warmup_steps=20, logging_steps=50
    )
    trainer.train_dataset = LabelledDataset(labelled, no_speech_share=0.1)
    trainer.train()
    metrics = trainer.evaluate()
    print({name: value for name, value in metrics.items() if "cer" in name})
    assert metrics["eval_fit_cer"] == 0 and metrics["eval_fit_ctc_cer"] == 0

    lines = (tmp_path / "predictions" / "fit.jsonl").read_text(encoding="utf-8").splitlines()
    lines = [json.loads(line) for line in lines]  # all of one length: each gets the audio of the next
    swapped = [{**line, "lm": other["lm"]} for line, other in zip(lines, lines[1:] + lines[:1], strict=True)]
    swapped = text_metrics(swapped)["cer"]
    print("audio swapped:", swapped)
    assert swapped > 0.8

    model, processor = trainer.model.eval(), trainer.processing_class
    silence = utterance("", np.random.default_rng(9))
    silence = np.concatenate([silence, silence])
    inputs = processor(audio=silence, sampling_rate=16000)
    with torch.no_grad():
        encoded = model.encode_audio(inputs["input_features"], inputs["input_features_mask"])
        logits, mask = model.ctc_logits(encoded_audio=encoded)
    lm_text = processor.decode_answers(model.generate(encoded_audio=encoded, max_new_tokens=20))[0]
    log_probs = logits.log_softmax(-1)
    ids = log_probs.argmax(-1)[0].unique_consecutive()
    ctc = processor.ctc_tokenizer.decode(ids[ids != 0].tolist(), group_tokens=False)
    blank = blank_statistics(log_probs, mask.sum(-1), blank_id=0)[0]
    decision = guard_text(lm_text, ctc, blank)
    print("silence:", repr(lm_text), repr(ctc), blank, decision.reason)
    assert decision.text == ""
