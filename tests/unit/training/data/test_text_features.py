import pytest
import torch

from tests.support import tiny_models
from tests.support.ranks import run_ranks
from videoar.core.errors import DamagedError, StorageError
from videoar.model.pretrained.model_folder import text_encoder_fields
from videoar.model.pretrained.text_encoder import T5TextEncoder
from videoar.model.transformer.config import PRESETS
from videoar.storage.store import open_store
from videoar.training.data import text_features
from videoar.training.data.text_features import TextFeatures, prepare_text_features

PROMPTS = [f"{colour} {shape} moving {way}"
           for colour in ("a red", "blue") for shape in ("circle", "square")
           for way in ("left", "up", "right right")] + [""]  # fmt: skip


@pytest.fixture
def store(tmp_path):
    torch.set_num_threads(1)
    return open_store((tmp_path / "store").as_uri())


@pytest.fixture
def folder(tmp_path):
    return tiny_models.t5(tmp_path / "t5")


def config_of(folder, **changes):
    return PRESETS["tiny"].model_copy(update={**text_encoder_fields(folder), **changes})


def stored(store):
    return [info.key for info in store.objects.list("text/")]


def test_stored_features_equal_those_of_the_encoder(store, folder, monkeypatch):
    monkeypatch.setattr(text_features, "_FILE_PROMPTS", 5)
    features = prepare_text_features(store, config_of(folder), folder, PROMPTS, 0, 1)
    assert len(stored(store)) == 3
    batch = [PROMPTS[3], PROMPTS[-1], PROMPTS[3], PROMPTS[0]]
    found, direct = features(batch), T5TextEncoder(folder, 32, 16)(batch)
    assert found.features_BPD.dtype == torch.float16
    assert torch.equal(found.mask_BP, direct.mask_BP)
    # other lengths of the padding may round the last bit of float16 differently
    torch.testing.assert_close(found.features_BPD, direct.features_BPD, atol=2e-3, rtol=2e-3)
    assert not found.features_BPD[~found.mask_BP].any()
    torch.testing.assert_close(features(batch).features_BPD, found.features_BPD, rtol=0, atol=0)


def test_second_run_computes_nothing(store, folder):
    cfg = config_of(folder)
    first = prepare_text_features(store, cfg, folder, PROMPTS, 0, 1)
    keys = stored(store)
    # no encoder is loaded: the folder does not exist
    second = prepare_text_features(store, cfg, "missing", PROMPTS[:4], 0, 1)
    assert stored(store) == keys
    assert torch.equal(second(PROMPTS[:4]).features_BPD, first(PROMPTS[:4]).features_BPD)
    prepare_text_features(store, cfg, folder, [*PROMPTS, "a square"], 0, 1)
    assert len(stored(store)) == len(keys) + 1  # the new prompt only


def test_features_are_kept_apart_by_encoder_and_length(store, folder, tmp_path):
    other = tiny_models.t5(tmp_path / "other", seed=1)
    prompts = ["a red circle moving left"]
    configs = [config_of(folder), config_of(other), config_of(folder, max_text_tokens=4)]
    texts = [
        prepare_text_features(store, cfg, path, prompts, 0, 1)(prompts)
        for cfg, path in zip(configs, (folder, other, folder), strict=True)
    ]
    assert [text.mask_BP.shape[1] for text in texts] == [6, 6, 4]
    assert not torch.allclose(texts[0].features_BPD, texts[1].features_BPD, atol=0.1)


def test_ranks_share_the_prompts_whoever_looks_first(store, folder):
    cfg = config_of(folder)
    with pytest.raises(StorageError, match=r"features of \d+ prompts are missing, e.g."):
        prepare_text_features(store, cfg, folder, PROMPTS, 1, 2)
    own = TextFeatures(store.objects, cfg, PROMPTS).missing
    assert 0 < len(own) < len(PROMPTS)
    features = prepare_text_features(store, cfg, folder, PROMPTS, 0, 2)
    assert (
        features(PROMPTS).lengths.tolist()
        == T5TextEncoder(folder, 32, 16)(PROMPTS).lengths.tolist()
    )
    assert len(stored(store)) == 2


def test_memory_of_features_is_bounded(store, folder, monkeypatch):
    monkeypatch.setattr(text_features, "_CACHE_BYTES", 1000)  # two prompts
    features = prepare_text_features(store, config_of(folder), folder, PROMPTS, 0, 1)
    whole = features(PROMPTS)
    assert sum(row.nbytes for row in features._cache.values()) == features._cached_bytes <= 1000
    for number, prompt in enumerate(PROMPTS):
        text = features([prompt])
        assert torch.equal(text.features_BPD[0], whole.features_BPD[number][: int(text.lengths)])


def test_unknown_prompt_is_an_error(store, folder):
    features = prepare_text_features(store, config_of(folder), folder, PROMPTS, 0, 1)
    with pytest.raises(StorageError, match="no features of the prompt 'a cat'"):
        features(["a cat"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:5],
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"{" * (len(data) - 8),
        lambda data: data.replace(b"F16", b"I16"),
    ],
)
def test_damaged_file_is_an_error_that_names_it(damage, store, folder):
    cfg = config_of(folder)
    prepare_text_features(store, cfg, folder, PROMPTS, 0, 1)
    (key,) = stored(store)
    store.objects.put(key, damage(store.objects.get(key)))
    with pytest.raises(DamagedError, match=f"{key}: damaged"):
        prepare_text_features(store, cfg, folder, PROMPTS, 0, 1)
    store.objects.delete(key)
    prepare_text_features(store, cfg, folder, PROMPTS, 0, 1)


def _share_of_rank(rank, url, folder, meeting):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    store = open_store(url)
    features = prepare_text_features(store, config_of(folder), folder, PROMPTS, rank, 2)
    assert not features.missing
    assert len(stored(store)) == 2  # one file of each rank, whoever was first
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_wait_for_the_features_of_each_other(store, folder, tmp_path):
    arguments = (store.url, folder, str(tmp_path / "meeting"))
    run_ranks(_share_of_rank, 2, *arguments)
