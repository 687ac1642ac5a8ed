"""`.nemo` archives: every tensor comes back bit for bit, and nothing unknown, unsafe or unfit gets through."""

import copy
import io
import sys
import tarfile
from pathlib import Path

import golden
import pytest
import torch
import yaml

from nest_hf import NestConfig, NestFeatureExtractor, NestForCTC, NestForPreTraining
from nest_hf.convert_nemo import convert, from_nemo, main, read_archive, to_nemo
from nest_hf.nemo_keys import TENSOR_NAMES, nemo_name, our_name


def write_archive(path: Path, config: dict, state: dict, *, mode: str = "w:") -> Path:
    weights = io.BytesIO()
    torch.save(state, weights)
    parts = {"./model_config.yaml": yaml.safe_dump(config).encode(), "./model_weights.ckpt": weights.getvalue()}
    with tarfile.open(path, mode) as archive:
        for name, content in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def changed(case: str = "tiny", **values) -> tuple[dict, dict]:
    """NeMo's configuration with `section__key=value` set (or dropped, where None), and its state dict."""
    config, state = golden.archive(case)
    config = copy.deepcopy(config)
    for key, value in values.items():
        *section, leaf = key.split("__")
        node = config[section[0]] if section else config
        if value is None:
            del node[leaf]
        else:
            node[leaf] = value
    return config, dict(state)


def assert_same_state(ours: dict, expected: dict):
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def save(folder: Path, **config) -> NestForPreTraining:
    torch.manual_seed(0)
    model = NestForPreTraining(NestConfig.from_preset("tiny", **config)).eval()
    model.save_pretrained(folder)
    NestFeatureExtractor(legacy_frontend=not model.config.masked_subsampling).save_pretrained(folder)
    return model


@pytest.mark.parametrize("case", golden.CASES)
def test_nemos_archive_comes_back_bit_for_bit(tmp_path, case):
    source = golden.FOLDER / case / f"{case}.nemo"
    from_nemo(source, tmp_path / "folder")
    to_nemo(tmp_path / "folder", tmp_path / "back.nemo")
    (expected_config, expected_state), (config, state) = read_archive(source), read_archive(tmp_path / "back.nemo")
    assert state["quantizer.codebooks"].dtype == torch.float64
    assert_same_state(state, expected_state)
    # NeMo's YAML leaves these two at their defaults
    assert config["preprocessor"].pop("preemph") == 0.97 and config["masking"].pop("mask_value") is None
    assert config == expected_config
    with tarfile.open(tmp_path / "back.nemo") as archive:
        assert archive.getnames() == ["./model_config.yaml", "./model_weights.ckpt"]


@pytest.mark.parametrize(
    "config",
    [
        {"squeeze_single": True},
        {"freeze_mask_embedding": False},
        {"mask_value": 0.25},
        {"num_codebooks": 3, "decoder_bias": False, "mask_allow_overlap": False, "mask_prob": 0.5},
        {"mask_version": "2.x"},
        {"masked_subsampling": False, "mask_version": "2.x"},
        {"attention_bias": False, "convolution_bias": False, "scale_input": False, "conv_kernel_size": 5},
        {"intermediate_size": 128, "dropout": 0.0, "attention_dropout": 0.2, "quantizer_distance": "cosine"},
    ],
    ids=lambda config: next(iter(config)),
)
def test_own_model_survives_the_way_through_nemo(tmp_path, config):
    model = save(tmp_path / "first", **config)
    to_nemo(tmp_path / "first", tmp_path / "x.nemo")
    loaded = from_nemo(tmp_path / "x.nemo", tmp_path / "second")
    assert_same_state(loaded.state_dict(), model.state_dict())
    assert {name for name, _ in loaded.named_parameters()} == {name for name, _ in model.named_parameters()}
    ours, theirs = loaded.config.to_diff_dict(), model.config.to_diff_dict()
    for run_field in ("_name_or_path", "architectures", "dtype"):
        ours.pop(run_field, None), theirs.pop(run_field, None)
    assert ours == theirs
    first, second = (NestFeatureExtractor.from_pretrained(tmp_path / name).to_dict() for name in ("first", "second"))
    assert first == second


def test_names_are_one_to_one():
    names = [name for case in golden.CASES for name in golden.archive(case)[1]]
    assert [nemo_name(our_name(name)) for name in names] == names
    unused = [pair for pair in TENSOR_NAMES if not any(pair[0] in name for name in names)]
    assert not unused


@pytest.mark.parametrize(
    "values, message",
    [
        ({"encoder__colour": "red"}, r"unknown configuration key `encoder.colour` \(value 'red'\)"),
        ({"surprise": 1}, "unknown configuration key `surprise`"),
        ({"adapters": {"a": {"enabled": True}}}, "unknown configuration key `adapters.a`"),
        ({"encoder__self_attention_model": "abs_pos"}, "`encoder.self_attention_model` is 'abs_pos'"),
        ({"encoder__att_context_size": [128, 128]}, r"`encoder.att_context_size` is \[128, 128\]"),
        ({"preprocessor__normalize": "all_features"}, "`preprocessor.normalize` is 'all_features'"),
        ({"preprocessor__window": None, "preprocessor__mag_power": 1.0}, "`preprocessor.mag_power` is 1.0"),
        ({"quantizer__num_classes": 32}, "`quantizer.num_classes` is 32, but only 64"),
        ({"encoder__feat_in": 64}, "`encoder.feat_in` is 64|`masking.feat_in` is 80"),
        ({"encoder__subsampling": None}, "`encoder.subsampling` is 'striding'"),  # NeMo's own default
        ({"mask_position": "post_conv"}, "`mask_position` is 'post_conv', but only 'pre_conv'"),
        ({"preprocessor__pad_to": 0}, "`preprocessor.pad_to` is 1, not a multiple"),
        ({"encoder__d_model": None}, "lacks `encoder.d_model`"),
        ({"target": "nemo.collections.tts.models.FastPitchModel"}, "holds a FastPitchModel"),
        ({"target": None}, "holds a model without `target`"),
        ({"nemo_version": None}, "does not say its `nemo_version`"),
        ({"encoder__n_layers": 4}, "missing tensors .*encoder.layers.3.feed_forward1.linear1.weight"),
        ({"encoder__d_model": 32}, "`decoder.feat_in` is 64, but only 32|another shape"),
    ],
    ids=str,
)
def test_configuration_that_is_not_understood_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        convert(*changed(**values))


def test_keys_left_out_have_nemos_defaults():
    """`dropout_att` is 0 in NeMo where its YAML says nothing, and 0.1 in NestConfig."""
    config, state = changed(encoder__dropout_att=None, encoder__dropout_emb=None, encoder__ff_expansion_factor=None)
    model, _ = convert(config, state)
    assert model.config.attention_dropout == 0.0 and model.config.dropout_positions == 0.1
    assert model.config.intermediate_size == 4 * 64


def test_tensors_that_are_not_understood_are_refused():
    for edit, message in (
        (lambda s: s.update({"encoder.gate.weight": torch.zeros(1)}), r"unknown \['encoder.gate.weight'\]"),
        (lambda s: s.pop("encoder.layers.1.self_attn.linear_q.weight"), r"missing .*1.self_attn.linear_q.weight"),
        (lambda s: s.pop("quantizer.codebooks"), r"missing tensors \['quantizer.codebooks'\]"),
        (lambda s: s.update({"mask_processor.mask_embedding": torch.zeros(40)}), r"shape .*mask_processor.mask_emb"),
        (lambda s: s.update({"preprocessor.featurizer.window": torch.ones(400)}), "`preprocessor.featurizer.window`"),
    ):
        config, state = changed()
        edit(state)
        with pytest.raises(ValueError, match=message):
            convert(config, state)


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt"])
def test_members_outside_the_archive_are_refused(tmp_path, name):
    path = write_archive(tmp_path / "x.nemo", *golden.archive("tiny"))
    with tarfile.open(path, "a:") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ValueError, match="unsafe member"):
        from_nemo(path, tmp_path / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["x.nemo"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "x.nemo", "w:") as archive:
        member = tarfile.TarInfo("model_config.yaml")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(ValueError, match="unsafe member 'model_config.yaml'"):
        read_archive(tmp_path / "x.nemo")


def test_code_in_weights_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = write_archive(tmp_path / "x.nemo", golden.archive("tiny")[0], {"a": Evil()})
    with pytest.raises(ValueError, match="model_weights.ckpt holds no plain tensors"):
        from_nemo(path, tmp_path / "folder")
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_archive_are_refused(tmp_path):
    (tmp_path / "text.nemo").write_text("no tar")
    with pytest.raises(ValueError, match="is not a tar archive"):
        read_archive(tmp_path / "text.nemo")
    with pytest.raises(ValueError, match="does not exist or is not a file"):
        read_archive(tmp_path / "none.nemo")
    tarfile.open(tmp_path / "empty.nemo", "w:").close()
    with pytest.raises(ValueError, match="lacks model_config.yaml"):
        read_archive(tmp_path / "empty.nemo")


def test_compressed_archives_are_read(tmp_path):
    path = write_archive(tmp_path / "x.nemo", *golden.archive("tiny"), mode="w:gz")
    assert_same_state(read_archive(path)[1], golden.archive("tiny")[1])


@pytest.mark.parametrize(
    "version, legacy, masks",
    [("2.0.0", True, "2.x"), ("2.4.1", True, "2.x"), ("2.5.3", False, "2.x"), ("2.7.3", False, "2.x"),
     ("3.0.0", False, "3.0"), ("1.23.0", True, "3.0")],
)  # fmt: skip
def test_version_decides_front_end_and_masks(version, legacy, masks):
    model, extractor = convert(*changed(nemo_version=version))
    assert extractor.legacy_frontend == legacy and model.config.masked_subsampling != legacy
    assert model.config.mask_version == masks
    forced, extractor = convert(*changed(nemo_version=version), legacy_frontend=not legacy)
    assert extractor.legacy_frontend != legacy and forced.config.masked_subsampling == legacy


@pytest.mark.parametrize(
    "config, version",
    [({}, "3.0.0"), ({"mask_version": "2.x"}, "2.7.3"), ({"masked_subsampling": False}, "2.4.1")],
    ids=str,
)
def test_recorded_version_is_one_with_the_same_numbers(tmp_path, config, version):
    save(tmp_path / "folder", **config)
    to_nemo(tmp_path / "folder", tmp_path / "x.nemo")
    assert read_archive(tmp_path / "x.nemo")[0]["nemo_version"] == version


@pytest.mark.parametrize(
    "config, message",
    [
        ({"mask_position": "post_conv"}, "`mask_position` 'post_conv' cannot be exported"),
        ({"quantizer_input_norm": True}, "`quantizer_input_norm` has no counterpart"),
        ({"hidden_dropout": 0.3}, "NeMo has one `encoder.dropout` for hidden_dropout and activation_dropout"),
        ({"intermediate_size": 100}, "`intermediate_size` 100 is not a multiple"),
    ],
    ids=str,
)
def test_what_nemo_cannot_express_is_not_exported(tmp_path, config, message):
    save(tmp_path / "folder", **config)
    with pytest.raises(ValueError, match=message):
        to_nemo(tmp_path / "folder", tmp_path / "x.nemo")
    assert not (tmp_path / "x.nemo").exists()


def test_existing_output_is_not_overwritten(tmp_path):
    save(tmp_path / "folder")
    (tmp_path / "x.nemo").write_text("precious")
    with pytest.raises(ValueError, match="x.nemo exists already"):
        to_nemo(tmp_path / "folder", tmp_path / "x.nemo")
    assert (tmp_path / "x.nemo").read_text() == "precious"


def test_ctc_archive(tmp_path):
    """A FastConformer-CTC as NeMo saves one: the tiny encoder, a vocabulary of 28 and the blank behind it."""
    config, state = changed(target="nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE")
    for section in ("masking", "quantizer", "loss", "num_classes", "num_books", "code_dim", "squeeze_single"):
        del config[section]
    del config["mask_position"]
    config["decoder"] = {"_target_": "nemo.collections.asr.modules.ConvASRDecoder", "vocabulary": list("abc")}
    config.update(tokenizer={"dir": "x"}, decoding={}, ctc_reduction="mean_volume", log_prediction=True)
    config["preprocessor"]["pad_to"] = 0
    state = {name: t for name, t in state.items() if not name.startswith(("quantizer", "mask_processor", "decoder"))}
    torch.manual_seed(0)
    state["decoder.decoder_layers.0.weight"], state["decoder.decoder_layers.0.bias"] = (
        torch.randn(29, 64, 1),
        torch.randn(29),
    )
    model = from_nemo(write_archive(tmp_path / "ctc.nemo", config, state), tmp_path / "folder")
    assert isinstance(model, NestForCTC) and (model.config.vocab_size, model.config.pad_token_id) == (29, 28)
    assert torch.equal(model.ctc_head.weight, state["decoder.decoder_layers.0.weight"])
    pretrained = golden.model("tiny").encoder.state_dict()
    assert_same_state(model.encoder.state_dict(), pretrained)
    loaded, extractor = (
        NestForCTC.from_pretrained(tmp_path / "folder"),
        NestFeatureExtractor.from_pretrained(tmp_path / "folder"),
    )
    features = extractor(golden.waves("tiny")[0], sampling_rate=16000, return_tensors="pt")
    assert features.input_features.shape[1] == 188  # 1 + 30000 // 160, not padded further
    assert loaded(**features).logits.shape == (4, 24, 29)
    del state["decoder.decoder_layers.0.weight"]
    with pytest.raises(ValueError, match="missing tensors .*ctc_head|missing tensors .*decoder"):
        convert(config, state)


def test_command_line_both_ways(tmp_path, monkeypatch, capsys):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert_nemo", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    output = command(golden.FOLDER / "tiny" / "tiny.nemo", tmp_path / "folder")
    assert "NestForPreTraining, 330,560 parameters" in output
    assert f"written: {tmp_path / 'back.nemo'}" in command(tmp_path / "folder", tmp_path / "back.nemo")
    assert_same_state(read_archive(tmp_path / "back.nemo")[1], golden.archive("tiny")[1])
    with pytest.raises(SystemExit, match="error: .*exists already"):
        command(tmp_path / "folder", tmp_path / "back.nemo")
